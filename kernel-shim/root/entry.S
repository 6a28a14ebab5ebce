/* Where the kernel starts us: rdi is the address of BootInfo, every other register is 0, rsp too. */
    .section .text.entry, "ax"
    .globl _start
_start:
    movq $stack_top, %rsp
#ifdef FAULT_bootinfo
    xorl %edi, %edi
#endif
    xorl %ebp, %ebp
    call start
    ud2

    .section .bss
    .balign 16
    .skip 16384
stack_top:
