/* What the kernel tells its first task, read with suspicion: a wrong layout gives plausible nonsense. */
#ifndef BOOTINFO_H
#define BOOTINFO_H

#include "types.h"

struct bootinfo {
    bool mcs, old_untyped;
    u64 ipc, extra_length;
    u64 nodes, cnode_bits, empty_start, empty_end;
    u64 untyped_start, untyped_count;
    u64 memory;       /* bytes in ordinary untypeds */
    u64 best_untyped; /* the slot of the largest of them, 0 if there is none */
};

/* PAGE is BootInfo's whole page. LAYOUT as in the ABI block: 0 takes the one layout that is plausible.
   NULL, or what is wrong with it. Reads nothing but the page. */
const char *bootinfo_read(const u8 *page, i32 layout, i32 untyped_bits_at, struct bootinfo *out);

/* The chunk of this id behind BootInfo, of at least SIZE bytes; NULL if there is none. */
const u8 *bootinfo_chunk(const u8 *extra, u64 length, u64 id, u64 size);

#endif
