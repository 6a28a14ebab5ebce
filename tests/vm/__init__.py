"""Real Linux kernels, booted in QEMU, whose own 9P client mounts our servers.

    images.py      the images, built once: images/v9fs*.toml has kernel, busybox, our first process
    guest.py       a booted guest: `async with guest("6.1", ports=[…]) as g: await g.run("ls")`
    servers.py     servers on this host: an export of ours, and diod for comparison
    mounts.py      a mount in a guest beside the directory that the host serves
    cases.py       what a kernel must be able to do with a served directory
    words.py       … and with ctl files, streams and error texts
    test_linux.py  every case, one boot a kernel

and a real Linux whose first process is Warren:

    test_role_image.py   the role image, one boot

    kernel.py initramfs.py   what the firmware's tests make a Linux of
"""
