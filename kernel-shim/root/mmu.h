/* Does the kernel do with pages what it says? One frame, mapped and unmapped under our eyes. */
#ifndef MMU_H
#define MMU_H

#include "bootinfo.h"

/* NULL if all is well, or what is not. May be run again as long as slots and memory last. Without the type
   number of a page there is nothing to test; mmu_words tells that from a test that passed. */
const char *mmu_test(struct bootinfo *info);
const char *mmu_words(void);

/* Where the test has its page. Afterwards it is unmapped, and touching it must fault. */
u64 mmu_address(void);

#endif
