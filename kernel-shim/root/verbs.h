/* What the host asks for by /ctl, a verb a line, and what we tell it in /proc/boot. */
#ifndef VERBS_H
#define VERBS_H

#include "bootinfo.h"
#include "standin.h"

struct machine {
    struct bootinfo info;
    const struct standin_chunk *standin; /* NULL on a genuine kernel */
    u64 entered;                         /* time stamp counter when the root task began */
    u32 role_bytes;
    bool role_cut;
};

/* Attach, read the role, report, and follow /ctl to its end. MMU is NULL or what the self-test found wrong. */
_Noreturn void serve(struct machine *machine, const char *mmu);

#endif
