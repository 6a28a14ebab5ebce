"""A store in a NATS cluster, by JetStream: what the hives of many machines share.

    async with open_jetstream("nats://a:4222,b:4222,c:4222/warren?replicas=3") as store: ...

    store      the interface, and who waits
    logs       topics: lots in a stream, each written to follow the one before
    values     keys: a bucket, and watches as positions in it
    follow     what changes, as it changes; wakes who waits
    engine     the questions, asked again while a cluster chooses another leader
    line       the connection; nothing else knows of the NATS client and its asyncio
    spelling   names as subjects, records as messages, addresses

Many processes may have the same store open. Numbers without a gap and expectations are decided by the leader
of a stream, for everybody: a write carries the place it must follow, and of two for the same place one is
refused. An answer that was lost is looked for, by a mark that the write carries, so nothing is done twice.
Where even that cannot be known within the patience of the call, it is StoreFailed, and the write may have
been done.

An answered write is with a majority of the replicas. It is NOT on their disks: nats-server answers before
it makes anything durable and syncs now and then (its 2.9 not at all, later ones every two minutes unless
`sync_interval: always` is set). What survives a killed server, or one of three machines losing its power,
may not survive all of them losing it at once. Where that must not be, use SQLite, or that setting.

Any client reads the bucket KV_PREFIX: values are written as buckets have them. Nobody but this module writes
the stream PREFIX, and nobody edits either while a role runs. The largest record is what the server's
max_payload leaves, 1 MiB unless it is set; 8 MiB make all limits as they are elsewhere.
"""

from warren.store.jetstream.store import JetStreamStatistics, JetStreamStore, open_jetstream

__all__ = ["JetStreamStatistics", "JetStreamStore", "open_jetstream"]
