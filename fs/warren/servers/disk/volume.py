"""What all entries of one disk share: whether it may change, its numbers, its versions, its locks."""

import hashlib
from typing import Final

from warren.tree.locks import Locks

PLAIN_INODE: Final = (1 << 62) - 1
_DEVICE: Final = (1 << 32) - 1
_WRITTEN_MAX: Final = 4096


class Volume:
    """One disk."""

    def __init__(self, read_only: bool, home: int) -> None:
        self.read_only = read_only
        self.home = home  # the root's device
        self.locks = Locks()
        self.written: dict[int, int] = {}
        self._writes = 0

    def number(self, device: int, inode: int) -> int:
        """A qid path: the inode itself on the root's device. Other devices get numbers that are exact
        for inodes of up to 31 bits and a 62-bit hash beyond; the two top bits tell the three apart."""
        if device == self.home and inode <= PLAIN_INODE:
            return inode
        if device <= _DEVICE and inode < 1 << 31:
            return 1 << 63 | device << 31 | inode
        digest = hashlib.blake2b(b"%d %d" % (device, inode), digest_size=8).digest()
        return 1 << 62 | int.from_bytes(digest, "little") >> 2

    def changed(self, number: int) -> None:
        """A file was written. Older kernels stamp files every few milliseconds, too coarse for a version,
        so our own writes are counted into it. To forget old counts costs a client one needless look."""
        self._writes += 1
        if len(self.written) >= _WRITTEN_MAX:
            self.written.clear()
        self.written[number] = self._writes
