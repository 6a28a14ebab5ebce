from warren.store.jetstream.store import JetStreamStatistics, JetStreamStore, open_jetstream

__all__ = ["JetStreamStatistics", "JetStreamStore", "open_jetstream"]
