"""What a directory says about one of its names."""

import stat as S
from dataclasses import dataclass

from warren.p9.fields import Qid


@dataclass(frozen=True, slots=True)
class Entry:
    """Attributes of one file, the same from every dialect. Times are nanoseconds.

    Plain 9P2000 knows owners by name: there `uid` and `gid` are those numbers if the names are
    numbers, else 65534. In the other dialects `owner` and `group` are the numbers as text.
    """

    name: str
    qid: Qid
    mode: int
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    uid: int = 65534
    gid: int = 65534
    nlink: int = 1
    rdev: int = 0
    blocks: int = 0
    blksize: int = 4096
    owner: str = ""
    group: str = ""
    word: int = 0  # of `tree.node`: STREAM, CTL, ... where the server is one of ours

    @property
    def is_dir(self) -> bool:
        return S.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return S.S_ISLNK(self.mode)
