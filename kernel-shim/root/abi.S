/* The block of numbers, filled for our stand-in. boot/sel4/abi.py finds it by its first 16 bytes and fills it for
   another kernel; a number that is 0 is not known, and is probed for or done without. It is made by the
   assembler so that no compiler can take its values for constants. */
#include "abi-numbers.h"

#ifdef FAULT_sign
#define SIGN -
#else
#define SIGN
#endif

    .section .abi, "a"
    .balign 16
    .globl abi
abi:
    .ascii "WARREN-ABI-BLOCK"
    .long ABI_BLOCK_VERSION, ABI_BLOCK_SIZE
    .long ABI_CLASSIC_LAYOUT
    .long SIGN ABI_CLASSIC_CALL, SIGN ABI_CLASSIC_YIELD, SIGN ABI_CLASSIC_PUTCHAR
    .long ABI_SLOTS_CNODE, ABI_SLOTS_VSPACE, ABI_SLOTS_IOPORT_CONTROL
    .long ABI_EVERY_RETYPE
    .long ABI_STANDIN_ISSUE, ABI_STANDIN_IN8, ABI_STANDIN_OUT8
    .long ABI_STANDIN_PAGE_MAP, ABI_STANDIN_PAGE_UNMAP
    .long ABI_STANDIN_FRAME
    .long 0
    .org abi + ABI_BLOCK_SIZE, 0
