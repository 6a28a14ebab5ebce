/* Memory and text; the compiler calls the mem* functions of its own accord too. */
#ifndef TEXT_H
#define TEXT_H

#include "types.h"

void *memcpy(void *to, const void *from, size_t count);
void *memset(void *to, int byte, size_t count);
int memcmp(const void *a, const void *b, size_t count);
size_t text_length(const char *text);
bool text_is(const char *bytes, size_t count, const char *text);

/* A bounded text. What does not fit is cut off and `cut` says so. */
struct text {
    char *at;
    size_t room, used;
    bool cut;
};
void put_bytes(struct text *text, const char *bytes, size_t count);
void put(struct text *text, const char *words);
void put_number(struct text *text, u64 value);
void put_hex(struct text *text, u64 value);
void put_signed(struct text *text, i64 value);

#endif
