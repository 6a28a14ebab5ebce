"""What happened: the trace ring for debugging, the audit for evidence.

One record type, two sinks. The ring is honest about loss and cheap enough to be always on; the
audit is written before the effect it speaks of.
"""
