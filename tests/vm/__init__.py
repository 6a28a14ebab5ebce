"""Real Linux kernels, booted in QEMU, whose own 9P client mounts our servers.

    kernel.py      Debian's generic kernels and busybox, fetched without installing them
    initramfs.py   the guest's root: busybox, the modules, our first process
    agent.c        that first process: runs scripts for the host
    probe.c        file-system calls that a shell has no word for
    guest.py       a booted guest: `async with guest("6.1", ports=[…]) as g: await g.run("ls")`
    servers.py     servers on this host: an export of ours, and diod for comparison
    mounts.py      a mount in a guest beside the directory that the host serves
    cases.py       what a kernel must be able to do with a served directory
    words.py       … and with ctl files, streams and error texts
    test_linux.py  every case, one boot a kernel
"""
