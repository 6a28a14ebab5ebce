/* System calls and the invocations we use. Numbers come from the ABI block, capabilities from BootInfo. */
#ifndef CALL_H
#define CALL_H

#include "types.h"

enum { CALL_OK, BAD_ARGUMENT, BAD_CAPABILITY, ILLEGAL, RANGE, ALIGNMENT, LOOKUP, TRUNCATED, DELETE_FIRST, REVOKE_FIRST,
       NO_MEMORY };

/* Labels as the block gives them or as they were found; filled by labels_find. */
struct labels {
    u64 issue, in8, out8, page_map, page_unmap;
    bool issue_probed, page_probed;
};
extern struct labels labels;

void calls_start(u64 *ipc_buffer);
u64 call(u64 cap, u64 label, unsigned length, const u64 *words, u64 extra_cap, u64 *answer);
void yield(void);
void putchar_debug(char c);
const char *call_error(u64 error);

const char *labels_find(void);                 /* NULL, or what could not be found */
const char *labels_find_page(u64 frame);       /* the same for the labels of a page, tried on this one */

u64 ports_issue(u16 first, u16 last, u64 slot);
u64 frame_make(u64 untyped, u64 slot);
u64 page_map(u64 frame, u64 address);
u64 page_unmap(u64 frame);

#endif
