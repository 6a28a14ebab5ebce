/* Lines for people, on COM1; on a debug kernel's own console while there is no COM1. */
#ifndef LOG_H
#define LOG_H

#include "types.h"

/* What a thread has of its own; the thread pointer (fs) points to it. */
struct self {
    struct self *self;
    u64 lines;
};

void thread_start(struct self *self);
void log_text(const char *words);
void log_bytes(const char *bytes, size_t count);
void log_line(const char *words);
void log_pair(const char *words, const char *more);

#endif
