"""Machines by libvirt, in a driver of this process's own.

    library          the only door to libvirt, and its events
    driver           the private driver: its folder, and what an earlier process left
    domain machine   one machine, its life and its streams
    child            its emulator's process, which becomes ours
    xml              its description
"""
