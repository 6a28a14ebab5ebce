/* Faults, told so that a person can read them, and the two interrupts: the timer and COM2. */
#include "kernel.h"

#define KERNEL_CODE 0x08
#define TSS 0x30
#define USER_CODE 0x2b
#define IRQ 32
#define IRQ_TIMER 0
#define IRQ_COM2 3
#define PAGE_FAULT 14
#define DOUBLE_FAULT 8
#define HZ 100
#define PIT_HZ 1193182

static const char *const names[] = {
    "divide error", "debug", "non-maskable interrupt", "breakpoint", "overflow", "bound range exceeded",
    "invalid opcode", "device not available", "double fault", "coprocessor overrun", "invalid TSS",
    "segment not present", "stack fault", "general protection", "page fault", "reserved", "x87 error",
    "alignment check", "machine check", "SIMD error", "virtualisation", "control protection",
};

static struct {
    u32 reserved;
    u64 stack[3];
    u64 reserved2;
    u64 ist[7];
    u64 reserved3;
    u16 reserved4, io_map;
} __attribute__((packed)) tss;

static u64 gdt[8];
static struct {
    u16 low, selector;
    u8 ist, type;
    u16 middle;
    u32 high, reserved;
} idt[48];

struct pointer {
    u16 limit;
    u64 base;
} __attribute__((packed));

extern char vectors[], stack_top[], fault_stack_top[];
static u64 own_ticks;
static volatile bool arrived;
static volatile u64 *ticks = &own_ticks;

static void write_msr(u32 msr, u64 value)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((u32)value), "d"((u32)(value >> 32)));
}

static void tables(void)
{
    u64 base = (u64)&tss, limit = sizeof tss - 1;

    gdt[1] = 0x00209a0000000000; /* kernel code */
    gdt[2] = 0x0000920000000000; /* kernel data */
    gdt[4] = 0x0000f20000000000; /* user data: sysret wants it before the code */
    gdt[5] = 0x0020fa0000000000; /* user code */
    gdt[6] = limit | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[7] = base >> 32;
    tss.stack[0] = (u64)stack_top;
    tss.ist[0] = (u64)fault_stack_top;
    tss.io_map = sizeof tss; /* none: a port is reached through a capability alone */
    for (unsigned i = 0; i < sizeof idt / sizeof idt[0]; i++) {
        u64 to = (u64)vectors + 16 * i;
        idt[i].low = (u16)to;
        idt[i].middle = (u16)(to >> 16);
        idt[i].high = (u32)(to >> 32);
        idt[i].selector = KERNEL_CODE;
        idt[i].type = 0x8e;
        idt[i].ist = i == DOUBLE_FAULT;
    }
    struct pointer to_gdt = {sizeof gdt - 1, (u64)gdt}, to_idt = {sizeof idt - 1, (u64)idt};
    __asm__ volatile("lgdt %0; lidt %1; ltr %w2" ::"m"(to_gdt), "m"(to_idt), "r"(TSS));
    __asm__ volatile("movl %0, %%ss" ::"r"(0x10));
}

/* Both interrupt controllers at 32, everything masked but timer and COM2; the timer at HZ. They reach the
   processor through its local APIC, which not every firmware opens for them. */
static void interrupts(void)
{
#ifdef FAULT_irq
    const u8 open = (u8)~(1 << IRQ_COM2);
#else
    const u8 open = (u8)~(1 << IRQ_TIMER | 1 << IRQ_COM2);
#endif
    const u8 words[][2] = {
        {0x20, 0x11}, {0xa0, 0x11}, {0x21, IRQ}, {0xa1, IRQ + 8}, {0x21, 4}, {0xa1, 2}, {0x21, 1}, {0xa1, 1},
        {0x21, open}, {0xa1, 0xff}, {0x43, 0x34}, {0x40, PIT_HZ / HZ & 0xff}, {0x40, PIT_HZ / HZ >> 8},
    };

    *(volatile u32 *)(LOCAL_APIC + 0xf0) = 0x1ff;  /* on */
    *(volatile u32 *)(LOCAL_APIC + 0x350) = 0x700; /* LINT0: from the controllers */
    for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++)
        out8(words[i][0], words[i][1]);
}

void trap_start(void)
{
    tables();
    write_msr(0xc0000081, 0x18ull << 48 | (u64)KERNEL_CODE << 32); /* STAR */
    write_msr(0xc0000082, (u64)syscall_entry);                     /* LSTAR */
    write_msr(0xc0000084, 0x47700);                                /* SFMASK: AC NT IOPL DF IF TF */
    interrupts();
}

void timer_page(volatile u64 *page)
{
    ticks = page;
}

static void report_bits(u64 error)
{
    static const char *const bits[][2] = {{"not mapped", "not allowed"}, {"read", "write"}, {"kernel", "user"},
                                          {"", "reserved bit"}, {"", "instruction fetch"}};
    const char *between = " (";

    for (int i = 0; i < 5; i++) {
        const char *word = bits[i][error >> i & 1];
        if (*word) {
            say(between);
            say(word);
            between = ", ";
        }
    }
    say(")");
}

static _Noreturn void report(const struct frame *frame)
{
    bool user = frame->cs & 3;
    u64 address;

    say(user ? "standin: the root task faulted: vector " : "standin: the stand-in faulted: vector ");
    say_number(frame->vector);
    say(" ");
    say(frame->vector < sizeof names / sizeof names[0] ? names[frame->vector] : "unexpected interrupt");
    say(" error ");
    say_hex(frame->error);
    say(" rip ");
    say_hex(frame->rip);
    if (frame->vector == PAGE_FAULT) {
        __asm__ volatile("movq %%cr2, %0" : "=r"(address));
        say(" address ");
        say_hex(address);
        report_bits(frame->error);
    }
    say("\r\n");
    leave(user ? EXIT_FAULT : EXIT_KERNEL);
}

/* Until an interrupt. COM2 may have said that it has something between the root task's look and its call: that
   is remembered, for it will not say so again while the byte lies there. An interrupt that comes before `hlt`
   still ends it. */
void rest(void)
{
    if (!arrived)
        __asm__ volatile("sti; hlt; cli" ::: "memory");
    arrived = false;
}

void trap(struct frame *frame)
{
    if (frame->vector == IRQ + IRQ_TIMER)
        ++*ticks;
    else if (frame->vector == IRQ + IRQ_COM2)
        arrived = true;
    else
        report(frame);
    out8(0x20, 0x20); /* end of interrupt */
}
