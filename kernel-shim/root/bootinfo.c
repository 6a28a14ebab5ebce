#include "abi.h"
#include "bootinfo.h"

#define FIRST_DYNAMIC 12
#define EXTRA_MOST (64ull << 20)
#define NODES_MOST 256
#define MIN_BITS 4
#define MAX_BITS 47
#define CHUNK_HEAD 16
#define CHUNKS_MOST 64

enum { AT_EXTRA = 0, AT_NODE = 8, AT_NODES = 16, AT_IPC = 32, AT_EMPTY = 40, AT_CNODE_BITS = 136, AT_TAIL = 152 };

static u64 word(const u8 *at)
{
    u64 value = 0;

    for (int i = 7; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

/* A run of slots: [start, end), inside the CNode. */
static bool is_run(const u8 *at, u64 slots)
{
    return word(at) <= word(at + 8) && word(at + 8) <= slots;
}

static const char *read_untypeds(const u8 *page, unsigned list, int bits_at, struct bootinfo *out)
{
    unsigned largest = 0;

    out->memory = out->best_untyped = 0;
    for (u64 i = 0; i < out->untyped_count; i++) {
        const u8 *record = page + list + 16 * i;
        unsigned bits = record[bits_at], device = record[bits_at + 1];
        if (bits < MIN_BITS || bits > MAX_BITS || device > 1 || word(record) & ((1ull << bits) - 1))
            return "BootInfo is implausible: an untyped's size, address or kind";
        if (device)
            continue;
        out->memory += 1ull << bits;
        if (bits > largest) {
            largest = bits;
            out->best_untyped = out->untyped_start + i;
        }
    }
    return NULL;
}

static const char *read_as(const u8 *page, bool mcs, i32 bits_at, struct bootinfo *out)
{
    unsigned tail = AT_TAIL + (mcs ? 16 : 0), list = tail + 16;

    *out = (struct bootinfo){
        .mcs = mcs, .ipc = word(page + AT_IPC), .extra_length = word(page + AT_EXTRA),
        .nodes = word(page + AT_NODES), .cnode_bits = word(page + AT_CNODE_BITS),
        .empty_start = word(page + AT_EMPTY), .empty_end = word(page + AT_EMPTY + 8),
        .untyped_start = word(page + tail),
    };
    if (!out->nodes || out->nodes > NODES_MOST || word(page + AT_NODE) >= out->nodes)
        return "BootInfo is implausible: the number of nodes";
    if (!out->ipc || out->ipc % PAGE || out->ipc >= USER_TOP)
        return "BootInfo is implausible: the address of the IPC buffer";
    if (out->extra_length > EXTRA_MOST)
        return "BootInfo is implausible: the length of what follows it";
    if (out->cnode_bits < MIN_BITS || out->cnode_bits > 32)
        return "BootInfo is implausible: the size of the root CNode";
    u64 slots = 1ull << out->cnode_bits;
    for (unsigned at = AT_EMPTY; at < AT_CNODE_BITS; at += 16)
        if (!is_run(page + at, slots))
            return "BootInfo is implausible: a run of slots outside the root CNode";
    if (out->empty_start < FIRST_DYNAMIC)
        return "BootInfo is implausible: slots that are taken are called empty";
    if ((mcs && !is_run(page + AT_TAIL, slots)) || !is_run(page + tail, slots) || out->untyped_start < FIRST_DYNAMIC)
        return "BootInfo is implausible: the slots of the untypeds";
    out->untyped_count = word(page + tail + 8) - out->untyped_start;
    if (!out->untyped_count || out->untyped_count > (PAGE - list) / 16)
        return "BootInfo is implausible: the number of untypeds";
    out->old_untyped = bits_at == 10;
    const char *wrong = read_untypeds(page, list, bits_at ? bits_at : 8, out);
    if (wrong && !bits_at) {
        out->old_untyped = true;
        wrong = read_untypeds(page, list, 10, out);
    }
    return wrong;
}

const char *bootinfo_read(const u8 *page, i32 layout, i32 untyped_bits_at, struct bootinfo *out)
{
    struct bootinfo other;

    if (untyped_bits_at && untyped_bits_at != 8 && untyped_bits_at != 10)
        return "the ABI block names an unknown place for the size of an untyped";
    if (layout == LAYOUT_CLASSIC || layout == LAYOUT_MCS)
        return read_as(page, layout == LAYOUT_MCS, untyped_bits_at, out);
    if (layout != LAYOUT_UNKNOWN)
        return "the ABI block names an unknown layout";
    const char *wrong = read_as(page, false, untyped_bits_at, out);
    const char *wrong_mcs = read_as(page, true, untyped_bits_at, &other);
    if (!wrong && !wrong_mcs)
        return "BootInfo is plausible in both layouts; the ABI block must say which it is";
    if (!wrong_mcs)
        *out = other;
    return wrong_mcs ? wrong : NULL;
}

const u8 *bootinfo_chunk(const u8 *extra, u64 length, u64 id, u64 size)
{
    for (int i = 0; i < CHUNKS_MOST && length >= CHUNK_HEAD; i++) {
        u64 whole = word(extra + 8);
        if (whole < CHUNK_HEAD || whole > length)
            return NULL;
        if (word(extra) == id)
            return whole >= size ? extra : NULL;
        extra += whole;
        length -= whole;
    }
    return NULL;
}
