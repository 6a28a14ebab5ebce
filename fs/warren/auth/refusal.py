"""Refusals of the authority that a person reads: what was refused, and the way out.

A stranger on the network is never told any of this; see `tls` for the words that reach the audit.
"""


class Refusal(ValueError):
    """What was refused, and the way out."""

    def __init__(self, text: str, way_out: str) -> None:
        super().__init__(f"{text}; {way_out}")
        self.text = text
        self.way_out = way_out


class Missing(Refusal):
    """What is needed is not there."""


class Standing(Refusal):
    """Something stands in the way that would be overwritten."""
