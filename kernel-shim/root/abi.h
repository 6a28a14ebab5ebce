/* The numbers by which we talk to the kernel we run on; see abi.toml. 0 is "not known". */
#ifndef ABI_H
#define ABI_H

#include "abi-numbers.h"
#include "types.h"

enum { LAYOUT_UNKNOWN, LAYOUT_CLASSIC, LAYOUT_MCS };

struct abi {
    char magic[16];
    u32 version, size;
    i32 layout;
    i32 call, yield, putchar; /* putchar 0: a release kernel, which would kill us for it */
    i32 cnode, vspace, ioport_control;
    i32 retype, issue, in8, out8, page_map, page_unmap, frame;
    i32 untyped_bits_at; /* where a descriptor keeps its size: byte 8, or 10 in old kernels */
    i32 reserved[11];
};
_Static_assert(sizeof(struct abi) == ABI_BLOCK_SIZE, "the block and its record differ");

extern const struct abi abi;

#endif
