"""Records behind tools: stores, an overlay that keeps writes from production, and the verbs that work on them."""

from frontier_tune.sdk.records.overlay import Overlay, StoreView
from frontier_tune.sdk.records.store import JsonStore, MemoryStore, Record, RecordStore, flatten, store_digest

__all__ = ["JsonStore", "MemoryStore", "Overlay", "Record", "RecordStore", "StoreView", "flatten", "store_digest"]
