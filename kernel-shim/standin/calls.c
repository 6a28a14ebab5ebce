/* What the root task may ask: Call on its IO-port, untyped and page capabilities, DebugPutChar, Yield.

   Error codes and their order follow the kernel we stand in for. What it would do and we cannot is never
   answered with a lie: the stand-in says what was asked and stops. */
#include "abi-numbers.h"
#include "kernel.h"

enum { OK, BAD_ARGUMENT, BAD_CAPABILITY, ILLEGAL, RANGE, ALIGNMENT, LOOKUP, TRUNCATED, DELETE_FIRST, REVOKE_FIRST,
       NO_MEMORY };
enum cap_type { NONE, CNODE, VSPACE, PORT_CONTROL, PORTS, UNTYPED, FRAME, OTHER };

#define CNODE_BITS 12
#define SLOTS (1u << CNODE_BITS)
#define DYNAMIC 12
#define UNTYPED_BITS 20
#define DEVICE_BITS 12
#define DEVICE 0xfec00000ull
#define OBJECT_TYPES 13
#define RETYPE_MOST 256
#define DEPTH 64

struct cap {
    u8 type, bits, device, mapped;
    u16 first, last;
    union {
        u64 address; /* FRAME: where it is mapped */
        u64 used;    /* UNTYPED: bytes given out */
    };
    u64 physical;
};

static struct cap slots[SLOTS];
static u64 *ipc;
static struct options options;

struct call {
    struct cap *cap;
    u64 label, length, extra;
    u64 word[6];
    u64 answer;
    u64 answers;
};

static _Noreturn void lacking(const char *what, u64 number)
{
    say("standin: asked for what the stand-in does not have: ");
    say(what);
    say(" ");
    if (number >> 63) {
        say("-");
        number = -number;
    }
    say_number(number);
    say("\r\n");
    leave(EXIT_UNKNOWN);
}

static struct cap *extra_cap(const struct call *call)
{
    u64 slot = ipc[122];
    return call->extra && slot < SLOTS ? &slots[slot] : NULL;
}

static struct cap *empty_slot(u64 index, u64 *error)
{
    if (index >= SLOTS)
        *error = RANGE;
    else if (slots[index].type != NONE)
        *error = DELETE_FIRST;
    else
        return &slots[index];
    return NULL;
}

static u64 issue_ports(const struct call *call)
{
    const u64 *word = call->word;
    const struct cap *cnode = extra_cap(call);
    u64 error = OK;

    if (call->label != (u64)options.issue)
        return ILLEGAL;
    if (call->length < 4 || !call->extra)
        return TRUNCATED;
    if (word[0] > word[1] || word[1] > 0xffff)
        return BAD_ARGUMENT;
    for (unsigned i = 0; i < SLOTS; i++)
        if (slots[i].type == PORTS && word[0] <= slots[i].last && slots[i].first <= word[1])
            return REVOKE_FIRST;
    if (!cnode || cnode->type != CNODE || word[3] != DEPTH)
        return LOOKUP;
    struct cap *slot = empty_slot(word[2], &error);
    if (slot)
        *slot = (struct cap){.type = PORTS, .first = (u16)word[0], .last = (u16)word[1]};
    return error;
}

static u64 use_port(struct call *call)
{
    u64 which = call->label - (u64)options.issue - 1;
    u16 port = (u16)call->word[0];

    if (which > 5)
        return ILLEGAL;
    if (call->length < (which < 3 ? 1 : 2))
        return TRUNCATED;
    if (call->word[0] < call->cap->first || call->word[0] > call->cap->last)
        return ILLEGAL;
    if (which % 3)
        lacking("a port access wider than a byte, label", call->label);
    if (which == 3) {
        out8(port, (u8)call->word[1]);
        return OK;
    }
    call->answer = in8(port);
    call->answers = 1;
    return OK;
}

static u64 retype(const struct call *call)
{
    const u64 *word = call->word; /* type, bits, cnode index, depth, first slot, count */
    const struct cap *cnode = extra_cap(call);
    struct cap *untyped = call->cap;

    if (call->label != ABI_EVERY_RETYPE)
        return ILLEGAL;
    if (call->length < 6 || !call->extra)
        return TRUNCATED;
    if (word[0] >= OBJECT_TYPES)
        return BAD_ARGUMENT;
    if (word[0] != (u64)options.frame)
        lacking("an object of type", word[0]);
    if (word[3])
        lacking("a destination below the root CNode, depth", word[3]);
    if (!cnode || cnode->type != CNODE)
        return LOOKUP;
    if (!word[5] || word[5] > RETYPE_MOST || word[4] >= SLOTS || word[5] > SLOTS - word[4])
        return RANGE;
    for (u64 i = 0; i < word[5]; i++)
        if (slots[word[4] + i].type != NONE)
            return DELETE_FIRST;
    if (word[5] * PAGE > (1ull << untyped->bits) - untyped->used)
        return NO_MEMORY;
    for (u64 i = 0; i < word[5]; i++) {
        u64 physical = untyped->physical + untyped->used;
        untyped->used += PAGE;
#ifndef FAULT_unzeroed
        if (!untyped->device)
            clear(at(physical));
#else
        ((u64 *)at(physical))[7] = ~0ull;
#endif
        slots[word[4] + i] = (struct cap){.type = FRAME, .physical = physical, .device = untyped->device};
    }
    return OK;
}

static u64 map_page(struct call *call)
{
    u64 address = call->word[0], rights = call->word[1], *entry;
    const struct cap *vspace = extra_cap(call);
    struct cap *frame = call->cap;

    if (call->length < 3 || !call->extra)
        return TRUNCATED;
    if (!vspace || vspace->type != VSPACE)
        return BAD_CAPABILITY;
#ifndef FAULT_twice
    if (frame->mapped && frame->address != address)
        return BAD_ARGUMENT;
#endif
    if (address >= USER_TOP)
        return BAD_ARGUMENT;
    if (address % PAGE)
        return ALIGNMENT;
    if (!(entry = user_entry(address)))
        return LOOKUP;
    if (*entry && !(frame->mapped && frame->address == address))
        lacking("a page mapped over another, at page number", address / PAGE);
    map_user(address, frame->physical, rights & 1 ? MAP_WRITE : 0); /* data: never executable */
    flush(address);
    frame->mapped = 1;
    frame->address = address;
    return OK;
}

static u64 use_page(struct call *call)
{
    struct cap *frame = call->cap;

    if (call->label == (u64)options.page_map)
        return frame->device ? BAD_CAPABILITY : map_page(call);
    if (call->label == (u64)options.page_map + 1) {
#ifndef FAULT_unmap
        if (frame->mapped) {
            *user_entry(frame->address) = 0;
            flush(frame->address);
        }
#endif
        frame->mapped = 0;
        return OK;
    }
    if (call->label == (u64)options.page_map + 2) {
        call->answer = frame->physical;
        call->answers = 1;
        return OK;
    }
    return ILLEGAL;
}

static u64 dispatch(struct call *call)
{
    switch (call->cap->type) {
    case NONE:
        return BAD_CAPABILITY;
    case PORT_CONTROL:
        return issue_ports(call);
    case PORTS:
        return use_port(call);
    case UNTYPED:
        return retype(call);
    case FRAME:
        return use_page(call);
    default:
        lacking("an invocation of the capability in slot", (u64)(call->cap - slots));
    }
}

static void invoke(struct frame *frame)
{
    u64 info = frame->rsi;
    struct call call = {.label = info >> 12, .length = info & 0x7f, .extra = info >> 7 & 3};

#ifdef FAULT_user_memory
    *(volatile u64 *)0x400000; /* the root task's page, read without asking the tables */
#endif
    if (frame->rdi >= SLOTS)
        lacking("an invocation of the capability in slot", frame->rdi);
    call.cap = &slots[frame->rdi];
    u64 in_registers[4] = {frame->r10, frame->r8, frame->r9, frame->r15};
    for (unsigned i = 0; i < 6; i++)
        call.word[i] = i < 4 ? in_registers[i] : ipc[1 + i];
    u64 error = dispatch(&call);
    frame->rdi = 0;
    frame->rsi = error << 12 | (error ? 0 : call.answers);
    if (!error && call.answers)
        frame->r10 = call.answer;
}

void system_call(struct frame *frame)
{
    i64 number = (i64)frame->rdx;
    i64 last = options.mcs ? ABI_MCS_PUTCHAR : ABI_CLASSIC_PUTCHAR;

    if (number == ABI_CLASSIC_CALL) {
        invoke(frame);
    } else if (number == (options.mcs ? ABI_MCS_YIELD : ABI_CLASSIC_YIELD)) {
        rest(); /* nothing else can run */
    } else if (number == last && !options.release) {
        say((char[]){(char)frame->rdi, 0});
    } else if (number > 0) {
        say("standin: unknown system call ");
        say_number((u64)number);
        say(": the kernel's numbers are negative, so the sign is wrong\r\n");
        leave(EXIT_UNKNOWN);
    } else {
        lacking(number >= last ? "system call" : "an unknown system call,", frame->rdx);
    }
}

void calls_start(const struct options *chosen, u64 *ipc_buffer)
{
    options = *chosen;
    ipc = ipc_buffer;
    for (unsigned i = 1; i < DYNAMIC; i++)
        slots[i].type = OTHER;
    slots[8].type = NONE; /* IOSpace: there is no IOMMU */
    slots[ABI_SLOTS_CNODE].type = CNODE;
    slots[ABI_SLOTS_VSPACE].type = VSPACE;
    slots[ABI_SLOTS_IOPORT_CONTROL].type = PORT_CONTROL;
}

/* A run of slots for one field of BootInfo: [start, end). */
static unsigned run(u64 *field, unsigned start, u64 count, enum cap_type type)
{
    if (count > SLOTS / 2 - start)
        stop(EXIT_NO_ROOT, "the root task has more pages than its CNode has slots");
    field[0] = start;
    field[1] = start + count;
    for (u64 i = start; i < start + count; i++)
        slots[i].type = type;
    return start + (unsigned)count;
}

static void untyped(u64 *record, struct cap *slot, u64 physical, unsigned bits, bool device)
{
    u8 *byte = (u8 *)(record + 1) + (options.old_untyped ? 2 : 0);

    *slot = (struct cap){.type = UNTYPED, .bits = (u8)bits, .device = device, .physical = physical};
    record[0] = physical;
    byte[0] = (u8)bits;
    byte[1] = device;
}

void bootinfo_make(u64 *word, const struct image *image, u64 extra)
{
    unsigned next = DYNAMIC, more = options.mcs ? 2 : 0;
    u64 *list = word + 21 + more;

    word[0] = extra;
    word[2] = 1;
    word[4] = image->end;
    word[17] = CNODE_BITS;
    next = run(word + 15, next, 1, OTHER);
    next = run(word + 9, next, (image->end - image->start) / PAGE, OTHER);
    next = run(word + 11, next, 3, OTHER);
    if (more)
        next = run(word + 19, next, 1, OTHER);
    next = run(word + 19 + more, next, 2, UNTYPED);
    untyped(list, &slots[next - 2], DEVICE, DEVICE_BITS, true);
    untyped(list + 2, &slots[next - 1], region_take(UNTYPED_BITS), UNTYPED_BITS, false);
    word[5] = next;
    word[6] = SLOTS;
}
