/* Both ways in (multiboot 1 and PVH), the step to 64 bits, and the ways from user mode and back.

   The 32-bit code runs where it was loaded, with tables made by the assembler: the first GiB at address 0
   and once more at the top. main() then makes tables with proper rights and the low copy is gone. */
#include "codes.h"

#define HIGH 0xffffffff80000000
#define MULTIBOOT 0x1badb002
#define MULTIBOOT_LOADER 0x2badb002
#define PVH_LOADER 0x336ec578
#define MEMORY_INFO 2

#define EFER 0xc0000080
#define SCE_LME_NXE 0x901
#define CR4_PAE 0x20
#define CR0_PG_WP_PE 0x80010001
#define CPUID_LM_NX_SYSCALL ((1 << 29) | (1 << 20) | (1 << 11))

    .section .boot, "ax"
    .code32
    .balign 4
    .long MULTIBOOT, MEMORY_INFO, -(MULTIBOOT + MEMORY_INFO)

    .globl multiboot_entry
multiboot_entry:
    movl %eax, %edi
    jmp enter
    .globl pvh_entry
pvh_entry:
    movl $PVH_LOADER, %edi
enter:
    cld
    movl %ebx, %esi
    rdtsc
    movl %eax, entered
    movl %edx, entered + 4
    movl $0x80000001, %eax
    cpuid
    andl $CPUID_LM_NX_SYSCALL, %edx
    cmpl $CPUID_LM_NX_SYSCALL, %edx
    jne too_old
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $EFER, %ecx
    rdmsr
    orl $SCE_LME_NXE, %eax
    wrmsr
    movl %cr0, %eax
    orl $CR0_PG_WP_PE, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long_mode

too_old:
    movl $sentence, %esi
    movw $COM1, %dx
1:  lodsb
    testb %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  movw $EXIT_PORT, %dx
    movb $EXIT_NO_ROOT, %al
    outb %al, %dx
3:  hlt
    jmp 3b
sentence:
    .asciz "standin: this processor lacks long mode, NX or syscall; give QEMU -cpu max\r\n"

    .code64
long_mode:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movq $stack_top, %rsp
    movq entered, %rdx
    movq $main, %rax
    call *%rax
4:  hlt
    jmp 4b

    .balign 8
entered:
    .quad 0
gdt:
    .quad 0, 0x00209a0000000000
gdt_pointer:
    .short 15
    .long gdt

    .section .table, "aw"
    .balign 4096
pml4:
    .quad pdpt + 3
    .fill 510, 8, 0
    .quad pdpt + 3
pdpt:
    .quad pd + 3
    .fill 509, 8, 0
    .quad pd + 3, 0
pd:
    .set frame, 0
    .rept 512
    .quad frame + 0x83
    .set frame, frame + 0x200000
    .endr

    .section .note.pvh, "a"
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry

    .section .bss
    .balign 16
    .skip 16384
    .globl stack_top
stack_top:
    .skip 4096
    .globl fault_stack_top
fault_stack_top:

/* User mode to us. All general registers are kept in a struct frame on our stack (see trap.h). */
    .text
    .macro save
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    .endm
    .macro load
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    .endm

/* The system call. The kernel we stand in for gives the stack pointer back from rbx, and so do we. */
    .globl syscall_entry
syscall_entry:
    movq $stack_top, %rsp
    pushq $0x23
    pushq %rbx
    pushq %r11
    pushq $0x2b
    pushq %rcx
    pushq $0
    pushq $0
    save
    movq %rsp, %rdi
    call system_call
    load
    movq 16(%rsp), %rcx
    movq 32(%rsp), %r11
    movq %rbx, %rsp
    sysretq

    .globl enter_user
enter_user:
    movq %rdi, %rsp
    load
    addq $16, %rsp
    iretq

trap_common:
    cld
    save
    movq %rsp, %rdi
    call trap
    load
    addq $16, %rsp
    iretq

/* Vector NUMBER: the processor pushes an error code for some; the others get a 0 in its place. */
    .globl vectors
    .balign 16
vectors:
    .set number, 0
    .rept 48
    .balign 16
    .if (number == 8) || (number >= 10 && number <= 14) || (number == 17) || (number == 21)
    .else
    pushq $0
    .endif
    pushq $number
    jmp trap_common
    .set number, number + 1
    .endr
