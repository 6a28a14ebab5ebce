"""Machines under QEMU, and what they are given.

    recipe           a kind of machine, from lib/*.toml
    qemu qmp         one that runs, and how it is told
    lines            on what it speaks with its host
    client           the package by which it is told, for qmp alone
    guest            the tree that its guest finds on its channel
    accel probe      whether an accelerator works here: a tiny image says
"""
