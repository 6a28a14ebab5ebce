"""Machines: what this host can boot, what it boots, and what is known of it before and after.

    formats     what boots, as bytes
    images      how it is built, signed and verified
    machines    QEMU, its recipes, and what a guest is given
    harness     one boot judged and measured
    secure      firmware, Secure Boot, and what was measured
    sel4        kernels of others under our root task
    libvirt     machines by libvirt
"""
