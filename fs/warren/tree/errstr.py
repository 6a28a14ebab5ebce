"""/dev/errstr: the newest error of the conversation that reads it, since an errno loses the reason.

`ErrStr` is the file. A server of `/dev` shows it; over a tree of words that has none, the export lays it.
"""

from warren.tree.node import TEXT, Bytes, Caller, Handle, Maybe, Node
from warren.tree.words import line


class ErrStr(Node):
    """The newest error line of the reader's conversation."""

    mode = 0o444
    word = TEXT

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return _ErrStrHandle(caller)


class _ErrStrHandle(Handle):
    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.says = b""

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        if offset == 0:
            self.says = line(self.caller.last_error)
        return self.says[offset : offset + count]
