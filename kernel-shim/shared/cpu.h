#ifndef CPU_H
#define CPU_H

#include "types.h"

static inline u64 timestamp(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

#endif
