/* COM1 for people, and the ways to end. */
#include "kernel.h"

void say(const char *text)
{
    for (; *text; text++) {
        while (!(in8(COM1 + 5) & 0x20))
            ;
        out8(COM1, (u8)*text);
    }
}

void say_hex(u64 value)
{
    char text[19] = "0x";
    int digits = 1;

    while (digits < 16 && value >> (4 * digits))
        digits++;
    for (int i = 0; i < digits; i++)
        text[2 + i] = "0123456789abcdef"[value >> (4 * (digits - 1 - i)) & 15];
    text[2 + digits] = 0;
    say(text);
}

void say_number(u64 value)
{
    char text[21];
    int at = 20;

    text[at] = 0;
    do
        text[--at] = (char)('0' + value % 10);
    while (value /= 10);
    say(text + at);
}

void say_line(const char *text)
{
    say("standin: ");
    say(text);
    say("\r\n");
}

/* Through the debug-exit device; on a machine without one, for ever. */
_Noreturn void leave(u8 code)
{
    out8(EXIT_PORT, code);
    for (;;)
        __asm__ volatile("cli; hlt");
}

_Noreturn void stop(u8 code, const char *why)
{
    say_line(why);
    leave(code);
}
