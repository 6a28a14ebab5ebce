"""Reaching trees.

dial       from an address or a stream to Files
files      Files: read, write, stat, ls, open, …
file       File: an open one
entry      Entry: attributes
session    dialling again
walk       from a path to a fid
words      what a dialect can say; linux, plain
link       one connection and who waits on it
address    tcp!HOST!PORT and its kin
errors     a server's refusal as an OSError
join       a first certificate; renew, the next ones
fuse       a tree as a directory, by /dev/fuse
sdk        for programs: messages, tasks and blobs that outlive lost connections
"""

from warren.mount.dial import dial
from warren.mount.entry import Entry
from warren.mount.file import File
from warren.mount.files import Files

__all__ = ["Entry", "File", "Files", "dial"]
