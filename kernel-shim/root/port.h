/* The three ranges of IO ports we hold, each by its own capability. */
#ifndef PORT_H
#define PORT_H

#include "types.h"

enum port_range { PORTS_COM1, PORTS_COM2, PORTS_EXIT, PORT_RANGES };

/* Issue all three into slots from FIRST on, below END. NULL, or what was refused. */
const char *ports_start(u64 first, u64 end);
bool ports_have(enum port_range range);
u8 port_in(enum port_range range, u16 port);
void port_out(enum port_range range, u16 port, u8 value);
void serial_start(enum port_range range, u16 base, u8 interrupts);
_Noreturn void leave(u8 code);

#endif
