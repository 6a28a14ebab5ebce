"""The words of a server author. Everything a server needs comes from here.

    Dir Text File Ctl Stream Sink Blob Clone       the words
    verb Secret Duration                           for ctl files
    Cursor Ring Queue WouldBlock Ended             for streams
    Refused                                        to refuse something
    Node Handle                                    for what is no word
"""

from warren.tree.ctl import Call, Command, Control, Ctl, CtlHandle, Duration, Secret, Verb, quote, split, verb
from warren.tree.errors import CODES, Refused, absent, describe, plain_words, trace_of
from warren.tree.node import (
    NOW,
    Attr,
    Bytes,
    Caller,
    Changes,
    Dirent,
    Handle,
    Lock,
    Maybe,
    Node,
    Statfs,
)
from warren.tree.stream import Cursor, Ended, Queue, Ring, Stream, StreamHandle, WouldBlock
from warren.tree.words import Blob, Clone, CloneHandle, Dir, File, Life, Sink, Text

__all__ = [
    "CODES", "NOW", "Attr", "Blob", "Bytes", "Call", "Caller", "Changes", "Clone", "CloneHandle", "Command",
    "Control", "Ctl", "CtlHandle", "Cursor", "Dir", "Dirent", "Duration", "Ended", "File", "Handle", "Life",
    "Lock", "Maybe", "Node", "Queue", "Refused", "Ring", "Secret", "Sink", "Statfs", "Stream", "StreamHandle",
    "Text", "Verb", "WouldBlock", "absent", "describe", "plain_words", "quote", "split", "trace_of", "verb",
]  # fmt: skip
