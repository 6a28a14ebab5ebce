"""Namespaces: trees bound together by a text, as a value, and as a tree again.

lines    the text: one thing a line
space    Space: what a namespace is, and mount, bind and unmount on it
build    from a text and what it includes to a Space, or every error at once
export   a Space served as a tree; `view`, `directory` and `readonly` are what it is made of
far      trees that are elsewhere; `reached` is the way there, `opened` and `locking` what is done there
"""

from warren.namespaces.build import build, library, read
from warren.namespaces.lines import BadNamespace, Line, parse
from warren.namespaces.space import Member, Space

__all__ = ["BadNamespace", "Line", "Member", "Space", "build", "library", "parse", "read"]
