"""Formats of what boots, from bytes to bytes: nothing is run, nothing is opened.

    elf headers      an ELF file judged before it starts, all its faults at once
    multiboot        the header by which a loader knows a kernel
    bootinfo         what seL4 tells a root task, in every layout
    pe uki           a kernel, its initramfs and its command line in one EFI program
    authenticode     its signature
    esp              the disk that firmware starts it from
    varstore         the firmware's variables, with the keys
    initramfs        a kernel's first file system
"""
