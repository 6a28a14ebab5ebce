"""Serving a tree: the trio half of 9P.

    export      the only door to a tree: policy, audit, trace, limits
    session     one attached conversation: fids and their rights
    calls       what every dialect can ask      linux, plain: what only one can
    connection  bytes to requests to replies: batches, parked requests, flush
    reactor     many sockets in one task        stream: one trio stream
    listen      addresses and listeners
"""
