"""Any sequence of what may happen to a queue leaves it as a dictionary would be."""

from __future__ import annotations

import hashlib
import tempfile
from typing import Any
from unittest import mock

import pytest
from conftest import examples
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from crystalline.errors import StoreError, UsageError
from crystalline.store import Arrival, Pass, Placed, Store
from crystalline.store import queue as queue_module

WORKERS = st.integers(0, 1)
TEXTS = st.lists(st.sampled_from([f"text {n}" for n in range(12)]), min_size=1, max_size=6)
WAITING = ("pending", "failed", "dead")


def key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Queue(RuleBasedStateMachine):
    """Two processes at one queue, with a clock of ours."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1000.0
        self.clock = mock.patch.object(queue_module.time, "time", lambda: self.now)
        self.clock.start()
        self.stores = [Store.open(self.folder.name, create=True) for _ in range(2)]
        self.model: dict[str, dict[str, Any]] = {}  # in order of arrival
        self.segments = self.places = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for store in self.stores:
                store.close()
            self.clock.stop()
            self.folder.cleanup()

    def _of(self, *states: str, owner: int | None = None) -> list[str]:
        found = [k for k, one in self.model.items() if one["state"] in states]
        return [k for k in found if owner is None or self.model[k]["owner"] == owner]

    def _ids(self, keys: list[str]) -> list[int]:
        return [self.stores[0].find(k).id for k in keys]

    @rule(who=WORKERS, texts=TEXTS, priority=st.integers(-1, 1), weight=st.integers(1, 3))
    def add(self, who: int, texts: list[str], priority: int, weight: int) -> None:
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

    @rule(who=WORKERS, most=st.integers(1, 4))
    def lease(self, who: int, most: int) -> None:
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

    @rule(who=WORKERS, share=st.floats(0, 1), held=st.booleans())
    def tokenized(self, who: int, share: float, held: bool) -> None:
        mine = self._of("leased", owner=who)
        mine = mine[: round(share * len(mine))]
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

    @rule(who=WORKERS)
    def of_another(self, who: int) -> None:
        for k in self._of("leased", owner=1 - who)[:1]:
            (i,) = self._ids([k])
            with pytest.raises(StoreError, match="not leased by this process"):
                self.stores[who].tokenized(self.segments, [Placed(i, self.places, 0, 1)])

    @rule(who=WORKERS)
    def failed(self, who: int) -> None:
        for k in self._of("leased", owner=who)[:1]:
            one = self.model[k]
            count = one["attempts"] + 1
            state = "dead" if count == 3 else "failed"
            assert self.stores[who].failed(*self._ids([k]), "why") == state
            until = None if count == 3 else self.now + 30 * 2 ** (count - 1)
            one |= {"state": state, "attempts": count, "owner": None, "until": until}

    @rule(who=WORKERS)
    def heartbeat(self, who: int) -> None:
        mine = self._of("leased", owner=who)
        assert self.stores[who].heartbeat(50) == len(mine)
        for k in mine:
            self.model[k]["until"] = self.now + 50

    @rule(who=WORKERS)
    def release(self, who: int) -> None:
        mine = self._of("leased", owner=who)
        assert self.stores[who].release() == len(mine)
        for k in mine:
            self.model[k] |= {"state": "pending", "owner": None, "until": None}

    @rule(who=WORKERS, seconds=st.sampled_from([1.0, 49.0, 50.0, 200.0]))
    def wait(self, who: int, seconds: float) -> None:
        self.now += seconds

    @rule(who=WORKERS)
    def reclaim(self, who: int) -> None:
        held = self._of("leased")
        assert self.stores[who].reclaim() == len(held)
        for k in held:
            self.model[k] |= {"state": "pending", "owner": None, "until": None}

    @rule(who=WORKERS)
    def retry(self, who: int) -> None:
        back = self._of("failed", "dead")
        assert self.stores[who].retry() == len(back)
        for k in back:
            self.model[k] |= {"state": "pending", "attempts": 0, "until": None}

    @rule(who=WORKERS, data=st.data())
    def remove(self, who: int, data: st.DataObject) -> None:
        if not self.model:
            return
        chosen = data.draw(st.lists(st.sampled_from(list(self.model)), unique=True, max_size=2))
        ids = self._ids(chosen)
        if all(self.model[k]["state"] in WAITING for k in chosen):
            assert self.stores[who].remove(ids) == len(chosen)
            for k in chosen:
                del self.model[k]
        else:
            with pytest.raises(UsageError):
                self.stores[who].remove(ids)

    @rule(who=WORKERS, state=st.sampled_from(WAITING))
    def clear(self, who: int, state: str) -> None:
        gone = self._of(state)
        assert self.stores[who].clear([state]) == len(gone)
        for k in gone:
            del self.model[k]

    @rule(who=WORKERS, data=st.data(), afresh=st.booleans(), wanted=st.integers(1, 2))
    def passes_of_a_checkpoint(
        self, who: int, data: st.DataObject, afresh: bool, wanted: int
    ) -> None:
        """Any passes: a checkpoint may be older than the one before."""
        ends = st.integers(0, max(self.places, 1))
        ranges = st.tuples(ends, ends).map(lambda ab: (min(ab), max(ab)))
        passes = [
            Pass(n, (data.draw(ranges),), n, data.draw(st.sampled_from([None, n + 5])))
            for n in range(data.draw(st.integers(0, 3)))
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

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "folder"):
            return
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


Queue.TestCase.settings = settings(
    max_examples=examples(15), stateful_step_count=25, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestQueue = Queue.TestCase
