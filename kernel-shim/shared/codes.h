/* What QEMU's debug-exit device is told. QEMU then ends with status code * 2 + 1. */
#ifndef CODES_H
#define CODES_H

#define EXIT_WELL 0x2a     /* all well */
#define EXIT_REFUSED 0x2b  /* the root task: a self-test failed, or the host refused */
#define EXIT_BOOTINFO 0x2c /* the root task: there is no BootInfo to believe */
#define EXIT_PROTOCOL 0x2d /* the root task: the host does not speak 9P2000 rightly */
#define EXIT_FAULT 0x31    /* the stand-in: the root task faulted; the report is on COM1 */
#define EXIT_KERNEL 0x32   /* the stand-in: it faulted itself */
#define EXIT_NO_ROOT 0x33  /* the stand-in: it will not start this root task, or on this processor */
#define EXIT_UNKNOWN 0x34  /* the stand-in: it was asked for what it does not have */

#define EXIT_PORT 0xf4
#define COM1 0x3f8
#define COM2 0x2f8

#endif
