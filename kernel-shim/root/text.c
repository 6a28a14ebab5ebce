#include "text.h"

void *memcpy(void *to, const void *from, size_t count)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count)::"memory");
    return start;
}

void *memset(void *to, int byte, size_t count)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(byte) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t count)
{
    const u8 *left = a, *right = b;

    for (; count--; left++, right++)
        if (*left != *right)
            return *left - *right;
    return 0;
}

size_t text_length(const char *text)
{
    size_t length = 0;

    while (text[length])
        length++;
    return length;
}

bool text_is(const char *bytes, size_t count, const char *text)
{
    return count == text_length(text) && !memcmp(bytes, text, count);
}

void put_bytes(struct text *text, const char *bytes, size_t count)
{
    if (count > text->room - text->used) {
        count = text->room - text->used;
        text->cut = true;
    }
    memcpy(text->at + text->used, bytes, count);
    text->used += count;
}

void put(struct text *text, const char *words)
{
    put_bytes(text, words, text_length(words));
}

void put_number(struct text *text, u64 value)
{
    char digits[20];
    size_t at = sizeof digits;

    do
        digits[--at] = (char)('0' + value % 10);
    while (value /= 10);
    put_bytes(text, digits + at, sizeof digits - at);
}

void put_signed(struct text *text, i64 value)
{
    if (value < 0)
        put(text, "-");
    put_number(text, value < 0 ? -(u64)value : (u64)value);
}

void put_hex(struct text *text, u64 value)
{
    char digits[16];
    size_t at = sizeof digits;

    do
        digits[--at] = "0123456789abcdef"[value & 15];
    while (value >>= 4);
    put(text, "0x");
    put_bytes(text, digits + at, sizeof digits - at);
}
