"""Any sequence of what may happen to a queue leaves it as a dictionary would be."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crystalline.errors import StoreError, UsageError
from crystalline.store import Arrival, Pass, Placed, Store
from crystalline.store import queue as queue_module

TEXTS = st.lists(st.sampled_from([f"text {n}" for n in range(12)]), min_size=1, max_size=6)
WAITING = ("pending", "failed", "dead")


Draw = Callable[[st.SearchStrategy[Any]], Any]
OPERATIONS: list[tuple[tuple[str, ...], Callable[[Any, int, Draw], None]]] = []


def while_there_are(*states: str) -> Callable[[Any], Any]:
    """An operation that means something only with documents in one of these states."""

    def note(operation: Any) -> Any:
        OPERATIONS.append((states, operation))
        return operation

    return note


def key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Queue:
    """Two processes at one queue, with a clock of ours, and what a dictionary says of it."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1000.0
        self.clock = mock.patch.object(queue_module.time, "time", lambda: self.now)
        self.clock.start()
        self.stores = [Store.open(self.folder.name, create=True) for _ in range(2)]
        self.model: dict[str, dict[str, Any]] = {}  # in order of arrival
        self.segments = self.places = 0
        self.add_these(0, [f"text {n}" for n in range(6)], 0, 1)

    def close(self) -> None:
        for store in self.stores:
            store.close()
        self.clock.stop()
        self.folder.cleanup()

    def step(self, draw: Draw) -> None:
        """Something happens."""
        able = [do for states, do in OPERATIONS if not states or self._of(*states)]
        draw(st.sampled_from(able))(self, draw(st.integers(0, 1)), draw)
        self.agrees()

    def _of(self, *states: str, owner: int | None = None) -> list[str]:
        found = [k for k, one in self.model.items() if one["state"] in states]
        return [k for k in found if owner is None or self.model[k]["owner"] == owner]

    def _ids(self, keys: list[str]) -> list[int]:
        return [self.stores[0].find(k).id for k in keys]

    @while_there_are()
    def add(self, who: int, draw: Draw) -> None:
        texts, priority = draw(TEXTS), draw(st.integers(-1, 1))
        self.add_these(who, texts, priority, draw(st.integers(1, 3)))

    def add_these(self, who: int, texts: list[str], priority: int, weight: int) -> None:
        added = self.stores[who].add(
            [Arrival(text, f"by {who}") for text in texts], priority=priority, weight=weight
        )
        new = [text for text in dict.fromkeys(texts) if key(text) not in self.model]
        assert added == (len(new), len(texts) - len(new), sum(map(len, new)))
        for text in new:
            self.model[key(text)] = {
                "state": "pending", "priority": priority, "weight": weight, "owner": None,
                "attempts": 0, "until": None, "place": None, "epochs": 0, "text": text,
            }  # fmt: skip

    @while_there_are("pending", "failed", "leased")
    def lease(self, who: int, draw: Draw) -> None:
        most = draw(st.integers(1, 4))
        for k in self._of("leased", "failed"):
            if self.model[k]["until"] <= self.now:
                self.model[k] |= {"state": "pending", "owner": None, "until": None}
        order = list(self.model)
        turn = sorted(
            self._of("pending"), key=lambda k: (-self.model[k]["priority"], order.index(k))
        )[:most]
        taken = self.stores[who].lease(most, seconds=50)
        assert [(one.hash, one.text, one.weight) for one in taken] == [
            (k, self.model[k]["text"], self.model[k]["weight"]) for k in turn
        ]
        for k in turn:
            self.model[k] |= {"state": "leased", "owner": who, "until": self.now + 50}

    @while_there_are("leased")
    def tokenized(self, who: int, draw: Draw) -> None:
        share, held = draw(st.floats(0, 1)), draw(st.booleans())
        mine = self._of("leased", owner=who)
        mine = mine[: math.ceil(share * len(mine))]
        out, kept = (mine[:1], mine[1:]) if held else ([], mine)
        ids = self._ids(kept)
        places = range(self.places, self.places + len(kept))
        placed = [Placed(i, n, 10 * n, 10) for i, n in zip(ids, places, strict=True)]
        self.stores[who].tokenized(self.segments, placed, held_out=self._ids(out))
        self.segments, self.places = self.segments + 1, self.places + len(kept)
        for k, place in zip(kept, places, strict=True):
            self.model[k] |= {"state": "tokenized", "owner": None, "until": None, "place": place}
        for k in out:
            self.model[k] |= {"state": "held_out", "owner": None, "until": None}

    @while_there_are("leased")
    def of_another(self, who: int, draw: Draw) -> None:
        for k in self._of("leased", owner=1 - who)[:1]:
            (i,) = self._ids([k])
            with pytest.raises(StoreError, match="not leased by this process"):
                self.stores[who].tokenized(self.segments, [Placed(i, self.places, 0, 1)])

    @while_there_are("leased")
    def failed(self, who: int, draw: Draw) -> None:
        for k in self._of("leased", owner=who)[:1]:
            one = self.model[k]
            count = one["attempts"] + 1
            state = "dead" if count == 3 else "failed"
            assert self.stores[who].failed(*self._ids([k]), "why") == state
            until = None if count == 3 else self.now + 30 * 2 ** (count - 1)
            one |= {"state": state, "attempts": count, "owner": None, "until": until}

    @while_there_are("leased")
    def heartbeat(self, who: int, draw: Draw) -> None:
        mine = self._of("leased", owner=who)
        assert self.stores[who].heartbeat(50) == len(mine)
        for k in mine:
            self.model[k]["until"] = self.now + 50

    @while_there_are("leased")
    def release(self, who: int, draw: Draw) -> None:
        mine = self._of("leased", owner=who)
        assert self.stores[who].release() == len(mine)
        for k in mine:
            self.model[k] |= {"state": "pending", "owner": None, "until": None}

    @while_there_are("leased", "failed")
    def wait(self, who: int, draw: Draw) -> None:
        seconds = draw(st.sampled_from([1.0, 49.0, 50.0, 200.0]))
        self.now += seconds

    @while_there_are("leased")
    def reclaim(self, who: int, draw: Draw) -> None:
        held = self._of("leased")
        assert self.stores[who].reclaim() == len(held)
        for k in held:
            self.model[k] |= {"state": "pending", "owner": None, "until": None}

    @while_there_are("failed", "dead")
    def retry(self, who: int, draw: Draw) -> None:
        back = self._of("failed", "dead")
        assert self.stores[who].retry() == len(back)
        for k in back:
            self.model[k] |= {"state": "pending", "attempts": 0, "until": None}

    @while_there_are()
    def remove(self, who: int, draw: Draw) -> None:
        if not self.model:
            return
        chosen = draw(st.lists(st.sampled_from(list(self.model)), unique=True, max_size=2))
        ids = self._ids(chosen)
        if all(self.model[k]["state"] in WAITING for k in chosen):
            assert self.stores[who].remove(ids) == len(chosen)
            for k in chosen:
                del self.model[k]
        else:
            with pytest.raises(UsageError):
                self.stores[who].remove(ids)

    @while_there_are("failed", "dead")
    def clear(self, who: int, draw: Draw) -> None:
        state = draw(st.sampled_from(WAITING))
        gone = self._of(state)
        assert self.stores[who].clear([state]) == len(gone)
        for k in gone:
            del self.model[k]

    @while_there_are("tokenized", "trained")
    def passes_of_a_checkpoint(self, who: int, draw: Draw) -> None:
        """Any passes: a checkpoint may be older than the one before."""
        afresh, wanted = draw(st.booleans()), draw(st.integers(1, 2))
        ends = st.integers(0, max(self.places, 1))
        ranges = st.tuples(ends, ends).map(lambda ab: (min(ab), max(ab)))
        passes = [
            Pass(n, (draw(ranges),), n, draw(st.sampled_from([None, n + 5])))
            for n in range(draw(st.integers(0, 3)))
        ]
        self.stores[who].set(target_epochs=wanted)
        self.stores[who].record_passes(passes, afresh=afresh)
        for one in self.model.values():
            if one["place"] is not None:
                one["epochs"] = sum(
                    p.last_step is not None and a <= one["place"] < b
                    for p in passes for a, b in p.places
                )  # fmt: skip
                one["state"] = "trained" if one["epochs"] >= wanted else "tokenized"

    def agrees(self) -> None:
        store = self.stores[0]
        found = {one.hash: one for one in store.documents(limit=100)}
        assert list(found) == list(self.model)
        for k, one in self.model.items():
            for name in ("state", "priority", "weight", "attempts", "until", "place", "epochs"):
                assert getattr(found[k], name) == one[name], name
            owner = None if one["owner"] is None else self.stores[one["owner"]].owner
            assert found[k].owner == owner
        kept = {row[0] for row in store.rows("SELECT document FROM contents")}
        waiting = {found[k].id for k in self._of("pending", "leased", "failed", "dead")}
        assert kept == waiting
        assert {s: n for s, (n, _) in store.counts().items() if n} == {
            s: len(self._of(s)) for s in {one["state"] for one in self.model.values()}
        }
        assert store.segments() == list(range(self.segments)) and store.integrity() == []


@settings(
    max_examples=examples(50), deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(st.data())
def test_the_queue_is_as_a_dictionary_would_be(data: st.DataObject) -> None:
    queue = Queue()
    try:
        for _ in range(60):
            queue.step(data.draw)
    finally:
        queue.close()
