#include "call.h"
#include "codes.h"
#include "port.h"

static const struct {
    u16 first, last;
    const char *refused;
} ranges[PORT_RANGES] = {
    {COM1, COM1 + 7, "the kernel issues no capability for COM1"},
    {COM2, COM2 + 7, "the kernel issues no capability for COM2"},
    {EXIT_PORT, EXIT_PORT, "the kernel issues no capability for the debug-exit port"},
};
static u64 caps[PORT_RANGES];

const char *ports_start(u64 first, u64 end)
{
    const char *wrong = NULL;

    for (int i = 0; i < PORT_RANGES; i++) {
        u64 error = DELETE_FIRST;
        for (; first < end && error == DELETE_FIRST; first++)
            if ((error = ports_issue(ranges[i].first, ranges[i].last, first)) == CALL_OK)
                caps[i] = first;
        if (error != CALL_OK && !wrong)
            wrong = ranges[i].refused;
    }
    return wrong;
}

bool ports_have(enum port_range range)
{
    return caps[range];
}

u8 port_in(enum port_range range, u16 port)
{
    u64 answer = 0;

    call(caps[range], labels.in8, 1, (u64[]){port}, 0, &answer);
    return (u8)answer;
}

void port_out(enum port_range range, u16 port, u8 value)
{
    call(caps[range], labels.out8, 2, (u64[]){port, value}, 0, NULL);
}

/* 115200 baud, 8N1, FIFOs on. */
void serial_start(enum port_range range, u16 base, u8 interrupts)
{
    static const u8 words[][2] = {{3, 0x80}, {0, 1}, {1, 0}, {3, 3}, {2, 7}, {4, 0x0b}};

    for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++)
        port_out(range, (u16)(base + words[i][0]), words[i][1]);
    port_out(range, (u16)(base + 1), interrupts);
}

_Noreturn void leave(u8 code)
{
    if (caps[PORTS_EXIT])
        port_out(PORTS_EXIT, EXIT_PORT, code);
    __builtin_trap(); /* no such device: the fault is all we have left */
}
