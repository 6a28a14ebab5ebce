#include "abi.h"
#include "call.h"
#include "codes.h"
#include "cpu.h"
#include "link.h"
#include "log.h"
#include "mmu.h"
#include "nine.h"
#include "port.h"
#include "text.h"
#include "verbs.h"

#define LINE 512
#define REPORT 1024 /* fits into the smallest message */
#define ROLE_MOST (16u << 10)
#define TICKS_WANTED 3
#define TICKS_PATIENCE 500000000ull /* time stamp counts: half a second of an interpreted machine */
#define LOOPS_LEAST 1000000

enum { FID_ROLE = 1, FID_BOOT, FID_CTL };

static u64 told;

/* One write of whole lines. The host bounds what it keeps; if it refuses, that is no reason to go on. */
static void report(const struct text *text)
{
    if (text->cut)
        log_line("a report was too long and is cut");
    if (!link_write(FID_BOOT, told, text->at, (u32)text->used)) {
        u32 length;
        const char *why = link_refusal(&length);
        log_text("root: the report is refused: ");
        log_bytes(why, length);
        log_text("\r\n");
        leave(EXIT_REFUSED);
    }
    told += text->used;
}

static void line(struct text *text, const char *key, const char *value)
{
    put(text, key);
    put(text, "=");
    put(text, value);
    put(text, "\n");
}

static void line_number(struct text *text, const char *key, u64 value)
{
    put(text, key);
    put(text, "=");
    put_number(text, value);
    put(text, "\n");
}

static _Noreturn void finish(u8 code)
{
    char room[64];
    struct text text = {room, sizeof room, 0, false};

    line(&text, "state", "ended");
    line_number(&text, "code", code);
    link_tell(FID_BOOT, told, text.at, (u32)text.used);
    leave(code);
}

static void put_abi(struct text *text, const struct machine *machine)
{
    line(text, "abi", machine->info.mcs ? "mcs" : "classic");
    line_number(text, "label.issue", labels.issue);
    line(text, "label.issue.from", labels.issue_probed ? "probe" : "block");
    line_number(text, "label.map", labels.page_map);
    line(text, "label.map.from", labels.page_probed ? "probe" : "block");
    line(text, "untyped.size", machine->info.old_untyped ? "byte 10" : "byte 8");
}

static const char *read_role(struct machine *machine)
{
    const u8 *data;
    u32 length;

    if (!link_walk(FID_ROLE, "role"))
        return "absent";
    if (!link_open(FID_ROLE, OREAD)) {
        link_clunk(FID_ROLE);
        return "refused";
    }
    for (;;) {
        u32 count = link_payload();
        if (!link_read(FID_ROLE, machine->role_bytes, count, &data, &length)) {
            link_clunk(FID_ROLE);
            return "refused";
        }
        if (!length || machine->role_bytes > ROLE_MOST)
            break;
        machine->role_bytes += length;
    }
    link_clunk(FID_ROLE);
    return machine->role_bytes > ROLE_MOST ? "too long" : machine->role_bytes ? "read" : "empty";
}

static void first_report(struct machine *machine, const char *mmu)
{
    char room[REPORT];
    struct text text = {room, sizeof room, 0, false};
    const char *role = read_role(machine);

    line(&text, "state", mmu ? "failed" : "ready");
    line(&text, "kernel", machine->standin ? "standin" : "sel4");
    line(&text, "abi", machine->info.mcs ? "mcs" : "classic");
    line(&text, "labels", labels.issue_probed || labels.page_probed ? "probed" : "given");
    line_number(&text, "caps", machine->info.empty_end - machine->info.empty_start);
    line_number(&text, "memory", machine->info.memory);
    line(&text, "mmu", mmu ? mmu : mmu_words());
    line(&text, "role", role);
    line_number(&text, "role.bytes", machine->role_bytes);
    if (machine->standin)
        line_number(&text, "tsc.kernel", machine->standin->entered);
    line_number(&text, "tsc.root", machine->entered);
    line_number(&text, "tsc.waited", link_waited());
    line_number(&text, "tsc.ready", timestamp());
    report(&text);
}

static void test_irq(struct text *text, const struct machine *machine)
{
    if (!machine->standin) {
        line(text, "irq", "untested: a genuine kernel keeps its timer to itself");
        return;
    }
    u64 before = machine->standin->ticks, since = timestamp(), seen = 0;
    for (u64 loops = 0; seen < TICKS_WANTED; loops++) {
        if (loops > LOOPS_LEAST && timestamp() - since > TICKS_PATIENCE)
            break;
        __asm__ volatile("pause");
        seen = machine->standin->ticks - before;
    }
    line(text, "irq", seen >= TICKS_WANTED ? "ok" : "failed: the timer does not interrupt");
    line_number(text, "irq.ticks", seen);
}

/* What capabilities must refuse. Each line is a refusal that a wrong kernel, or wrong numbers, would not give. */
static const char *test_caps(struct machine *machine)
{
    u64 slot = machine->info.empty_start;

    if (slot == machine->info.empty_end)
        return "no slot is free";
    if (call(slot, labels.issue, 0, NULL, 0, NULL) != BAD_CAPABILITY)
        return "an empty slot can be invoked";
    if (ports_issue(COM2, COM2, slot) != REVOKE_FIRST)
        return "a port that is taken is issued again";
    if (ports_issue(COM1 + 9, COM1 + 8, slot) != BAD_ARGUMENT)
        return "ports are issued backwards";
    if (call((u64)abi.ioport_control, (u64)abi.retype, 0, NULL, 0, NULL) != ILLEGAL)
        return "IO-port control takes a label that is not its own";
    if (!abi.frame)
        return NULL; /* no object can be made, so none can be asked */
    u64 untyped = machine->info.best_untyped, next = mmu_address();
    if (frame_make(untyped, (u64)abi.cnode) != DELETE_FIRST)
        return "a slot that is taken is written over";
    if (call(untyped, (u64)abi.retype, 6, (u64[]){(u64)abi.frame, 0, 0, 0, slot, 0}, (u64)abi.cnode, NULL) != RANGE)
        return "no object at all can be made";
    if (call(untyped, (u64)abi.retype, 5, (u64[]){(u64)abi.frame, 0, 0, 0, slot}, (u64)abi.cnode, NULL) != TRUNCATED)
        return "an object is made of half a request";
    if (frame_make(untyped, slot) != CALL_OK)
        return "no page could be made";
    machine->info.empty_start++;
    if (page_map(slot, next + 8) != ALIGNMENT)
        return "a page is mapped between two pages";
    if (page_map(slot, USER_TOP + PAGE) != BAD_ARGUMENT)
        return "a page is mapped into the kernel's memory";
    if (call(slot, labels.page_map, 3, (u64[]){next, 3, 0}, (u64)abi.cnode, NULL) != BAD_CAPABILITY)
        return "a page is mapped by a capability that is no address space";
    return NULL;
}

static void test(struct text *text, struct machine *machine, const char *name, size_t length)
{
    const char *wrong;

    if (text_is(name, length, "mmu")) {
        wrong = mmu_test(&machine->info);
        line(text, "mmu", wrong ? wrong : mmu_words());
    } else if (text_is(name, length, "irq")) {
        test_irq(text, machine);
    } else if (text_is(name, length, "caps")) {
        wrong = test_caps(machine);
        line(text, "caps.test", wrong ? wrong : "ok");
        line_number(text, "caps", machine->info.empty_end - machine->info.empty_start);
    } else if (text_is(name, length, "abi")) {
        put_abi(text, machine);
    } else {
        line(text, "refused", "test: one of mmu irq caps abi");
    }
}

/* Each must be caught by a kernel that keeps its word. If we come back, it was not. */
static bool do_fault(const char *name, size_t length)
{
    extern char _start[];
    static u8 nop_return[] = {0x90, 0xc3};

    if (text_is(name, length, "null"))
        *(volatile u64 *)0;
    else if (text_is(name, length, "unmapped"))
        *(volatile u64 *)mmu_address() = 1;
    else if (text_is(name, length, "text"))
        *(volatile u8 *)_start = 0x90;
    else if (text_is(name, length, "data"))
        ((void (*)(void))(u64)nop_return)();
    else if (text_is(name, length, "kernel"))
        *(volatile u64 *)0xffffffff80100000;
    else if (text_is(name, length, "privileged"))
        __asm__ volatile("movq %%cr3, %%rax" ::: "rax");
    else if (text_is(name, length, "port"))
        __asm__ volatile("outb %%al, $0x80" ::"a"(0));
    else if (text_is(name, length, "instruction"))
        __asm__ volatile("ud2");
    else if (text_is(name, length, "call"))
        call(0xffffffff, labels.issue, 0, NULL, 0, NULL);
    else
        return false;
    return true;
}

static bool read_number(const char *at, size_t length, u64 *value)
{
    *value = 0;
    for (size_t i = 0; i < length; i++) {
        if (at[i] < '0' || at[i] > '9' || i == 3)
            return false;
        *value = 10 * *value + (u64)(at[i] - '0');
    }
    return length && *value < 128;
}

static void follow(struct machine *machine, const char *at, size_t length)
{
    char room[REPORT];
    struct text text = {room, sizeof room, 0, false};
    size_t verb = 0;
    u64 code;

    while (length && (at[length - 1] == ' ' || at[length - 1] == '\r'))
        length--;
    while (verb < length && at[verb] != ' ')
        verb++;
    size_t skip = verb < length ? verb + 1 : verb;
    const char *rest = at + skip;
    size_t more = length - skip;

    if (!length) {
        return;
    } else if (text_is(at, verb, "say")) {
        log_text("root: ");
        log_bytes(rest, more);
        log_text("\r\n");
        put(&text, "said=");
        put_bytes(&text, rest, more);
        put(&text, "\n");
    } else if (text_is(at, verb, "test")) {
        test(&text, machine, rest, more);
    } else if (text_is(at, verb, "fault")) {
        put(&text, do_fault(rest, more) ? "fault=survived: the kernel let it pass\n"
                                        : "refused=fault: one of null unmapped text data kernel privileged port "
                                          "instruction call\n");
    } else if (text_is(at, verb, "stop") && !more) {
        finish(EXIT_WELL);
    } else if (text_is(at, verb, "exit") && !more) {
        finish(EXIT_WELL);
    } else if (text_is(at, verb, "exit") && read_number(rest, more, &code)) {
        finish(code ? (u8)code : EXIT_WELL);
    } else if (text_is(at, verb, "exit")) {
        put(&text, "refused=exit: a number from 0 to 127, or none\n");
    } else {
        put(&text, "refused=not a verb; one of say test fault exit stop: ");
        put_bytes(&text, at, verb < 64 ? verb : 64);
        put(&text, "\n");
    }
    report(&text);
}

static void refuse_long(void)
{
    char room[64];
    struct text text = {room, sizeof room, 0, false};

    line(&text, "refused", "a line of more than 511 bytes");
    report(&text);
}

/* A line as it stands in RECORD, or only the rest of one whose beginning was too long to keep. */
static void follow_line(struct machine *machine, const char *at, u32 length, bool rest)
{
    if (rest || length >= LINE)
        refuse_long();
    else
        follow(machine, at, length);
}

/* A record is a line or several. A read that comes back full may have been cut, and then the line goes on in
   the next one; otherwise the record is whole and so is its last line, with or without its end. A line that is
   too long is not followed at all, or its tail would be taken for a verb. */
static void follow_all(struct machine *machine)
{
    static char record[2 * LINE];
    const u8 *data;
    u32 kept = 0, length;
    bool rest = false;

    while (link_read(FID_CTL, 0, LINE, &data, &length) && length) {
        memcpy(record + kept, data, length); /* the answers will overwrite the reply */
        u32 at = 0, end = kept, all = kept + length;
        for (; end < all; end++) {
            if (record[end] != '\n')
                continue;
            follow_line(machine, record + at, end - at, rest);
            rest = false;
            at = end + 1;
        }
        kept = all - at;
        if (length < LINE && (kept || rest)) {
            follow_line(machine, record + at, kept, rest);
            rest = false;
            kept = 0;
        } else if (kept >= LINE) {
            rest = true;
            kept = 0;
        }
        for (u32 i = 0; i < kept; i++)
            record[i] = record[at + i];
    }
    log_line("the host ended /ctl");
    leave(EXIT_WELL);
}

_Noreturn void serve(struct machine *machine, const char *mmu)
{
    link_start();
    if (!link_walk(FID_BOOT, "proc/boot") || !link_open(FID_BOOT, OWRITE)) {
        log_line("the host has no /proc/boot to report to");
        leave(EXIT_REFUSED);
    }
    first_report(machine, mmu);
    if (mmu)
        finish(EXIT_REFUSED);
    if (!link_walk(FID_CTL, "ctl") || !link_open(FID_CTL, OREAD)) {
        log_line("the host has no /ctl to follow");
        leave(EXIT_REFUSED);
    }
    follow_all(machine);
    __builtin_unreachable();
}
