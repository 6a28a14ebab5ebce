"""Where a server keeps what must outlast a request: see `interface` for the promises."""

from warren.store.interface import (
    NAME_MAX,
    BadName,
    Change,
    Conflict,
    Entry,
    Limits,
    NotFound,
    Record,
    Statistics,
    Store,
    StoreClosed,
    StoreError,
    StoreFailed,
    StoreFull,
    TooLarge,
    Trimmed,
    Watch,
)
from warren.store.journal import Batch, Journal
from warren.store.memory import MemoryStatistics, MemoryStore

__all__ = [
    "NAME_MAX",
    "BadName",
    "Batch",
    "Change",
    "Conflict",
    "Entry",
    "Journal",
    "Limits",
    "MemoryStatistics",
    "MemoryStore",
    "NotFound",
    "Record",
    "Statistics",
    "Store",
    "StoreClosed",
    "StoreError",
    "StoreFailed",
    "StoreFull",
    "TooLarge",
    "Trimmed",
    "Watch",
]
