"""state.db: the queue, the history and the provenance of one model."""

from crystalline.store.documents import Added, Arrival, Document, Leased, Placed
from crystalline.store.origins import Origin
from crystalline.store.provenance import Store
from crystalline.store.training import Pass

__all__ = ["Added", "Arrival", "Document", "Leased", "Origin", "Pass", "Placed", "Store"]
