"""/mesh/ca: the hive's certificate authority as files.

    /csr             write a signing request (PEM), read the chain back from the same descriptor
    /bundle          the roots to trust, PEM
    /crl             the revocation lists in force, PEM
    /status          issued= active= revoked= invited= ttl= next_expiry= root_sha256=
    /issued/SERIAL   one certificate: whose, from when until when, and what became of it
    /ctl             verbs: invite, revoke, rotate, ttl

Of a request only the key is used. Whoever has a certificate gets another for its own name, while the
register has a live one of that name; what the request wishes for besides is ignored.

Who has none needs a join token, which `invite` answers, and sees a tree of its own: `joining(ca)`, with
csr and bundle alone, for `Gate.join`. There the token stands before the request, in one write:

    warren-join 1
    ...
    -----BEGIN CERTIFICATE REQUEST-----
    ...

Of a token only a hash is kept. It is taken by a compare-and-set before anything is signed, so of two who
come at once one key wins. The same key may come again until the token ends, because its answer may have
been lost, and gets what it got. Another key is refused and raises an alarm. A joiner hears one sentence,
whatever was wrong with its token; the reason is told to `tell`, a reuse to `alarm`.
"""

from warren.servers.ca.tree import JOINING, Ca, joining

__all__ = ["JOINING", "Ca", "joining"]
