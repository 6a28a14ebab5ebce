/* The chunk after BootInfo by which the stand-in says that it is one. No genuine kernel has it. */
#ifndef STANDIN_H
#define STANDIN_H

#include "types.h"

#define STANDIN_CHUNK 0x57415252454e0001ull

struct standin_chunk {
    u64 id;             /* STANDIN_CHUNK */
    u64 length;         /* of the chunk, these two words included */
    volatile u64 ticks; /* timer interrupts so far; the page is read-only here and changes by itself */
    u64 entered;        /* time stamp counter when the stand-in was entered */
};

#endif
