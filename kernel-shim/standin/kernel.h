/* The stand-in's own parts, and what each promises the others. */
#ifndef KERNEL_H
#define KERNEL_H

#include "codes.h"
#include "cpu.h"
#include "types.h"

#define HIGH 0xffffffff80000000ull
#define GIB (1ull << 30)
#define LOCAL_APIC (HIGH + GIB)
#define LOCAL_APIC_PHYSICAL 0xfee00000ull

/* console.c: COM1, and the two ways to stop */
void say(const char *text);
void say_hex(u64 value);
void say_number(u64 value);
void say_line(const char *text);
_Noreturn void leave(u8 code);
_Noreturn void stop(u8 code, const char *why);
static inline void out8(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
static inline u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* memory.c: frames, and the tables of the one address space. Frames are zero when they are handed out. */
enum { MAP_WRITE = 1, MAP_EXECUTE = 2 };
void memory_start(u64 first, u64 end);
u64 frame_take(void);
u64 frames_left(void);
void clear(void *page);
u64 region_take(unsigned bits);
void *at(u64 physical);
void map_kernel(void);
void map_user(u64 address, u64 frame, int rights);   /* makes the tables it needs */
u64 *user_entry(u64 address);                        /* NULL without a table for it */
bool user_frame(u64 address, u64 *physical);
void flush(u64 address);

/* image.c: the root task's ELF into memory */
struct image {
    u64 entry, start, end;
};
void image_load(const u8 *file, u64 size, struct image *image);

/* trap.c */
struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector, error, rip, cs, flags, rsp, ss;
};
void trap_start(void);
void trap(struct frame *frame);
_Noreturn void enter_user(struct frame *frame);
void syscall_entry(void);
void rest(void);
void timer_page(volatile u64 *ticks);

/* calls.c */
struct options {
    bool mcs, old_untyped, release, no_bootinfo;
    i32 issue, page_map, frame;
};
void calls_start(const struct options *chosen, u64 *ipc_buffer);
void bootinfo_make(u64 *word, const struct image *image, u64 extra);
void system_call(struct frame *frame);

#endif
