"""Several processes at one queue, and kill -9 at random moments: nothing lost, nothing twice.

CRYSTALLINE_KILLS says how many times (4; `make kill`: 100).
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

from scripts import Script

from crystalline.store import Arrival, Store

KILLS = int(os.environ.get("CRYSTALLINE_KILLS", "4"))
TEXTS = 500  # of each adder, half of them the other's too

# Adds small batches and says which texts are on the disk; begins anew after a kill.
ADD = """
import sys
from crystalline.store import Arrival, Store, documents
documents.ROWS = 5
folder, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
with Store.open(folder, create=True) as store:
    for n in range(first, first + count, 5):
        store.add(Arrival(f"text {k} " * (k % 50 + 1), f"/texts/{k}") for k in range(n, n + 5))
        print(n + 5, flush=True)
"""

# What a training does: leases, writes a segment beside, forces it to the disk, makes it count.
LEASE = """
import json, os, random, sys, time
from pathlib import Path
from crystalline.store import Placed, Store
from crystalline.store.models import held
folder, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
with held(folder), Store.open(folder, create=True) as store:
    print("ready", flush=True)
    store.reclaim()
    while not (folder / "stop").exists() or store.counts()["pending"][0] or \\
            store.counts()["failed"][0]:
        taken = store.lease(rng.randint(1, 20), seconds=30)
        if not taken:
            store.retry()
            time.sleep(0.01)
            continue
        while rng.random() < 0.3:
            assert store.heartbeat() == len(taken)
        if rng.random() < 0.2:
            store.failed(taken.pop().id, "of no use", attempts=100)
        if rng.random() < 0.2 and taken:
            store.release([taken.pop().id])
        segment = len(store.segments())
        places = store.rows("SELECT coalesce(max(place) + 1, 0) FROM documents")[0][0]
        with open(folder / f"segment-{segment}", "w") as file:
            json.dump([one.hash for one in taken], file)
            file.flush()
            os.fsync(file.fileno())
        store.tokenized(segment, [Placed(one.id, places + n, 0, 1) for n, one in enumerate(taken)])
"""


def test_killed_at_random_nothing_is_lost_and_nothing_twice(tmp_path: Path) -> None:
    rng = random.Random(2)
    firsts = {"one": 0, "two": TEXTS // 2}
    confirmed = dict.fromkeys(firsts, 0)

    def begin(name: str) -> Script:
        script = (
            Script(LEASE, tmp_path, rng.randrange(2**30)) if name == "lease"
            else Script(ADD, tmp_path, firsts[name], TEXTS)
        )  # fmt: skip
        assert script.line() == "ready"
        return script

    def end(name: str, script: Script, kill: bool) -> None:
        code, out, err = script.end(kill=kill)
        assert code == (-9 if kill and code else 0), err
        for line in out.split():
            confirmed[name] = max(confirmed[name], int(line))

    Store.open(tmp_path, create=True).close()
    running = {name: begin(name) for name in (*firsts, "lease")}
    for _ in range(3 * KILLS):
        time.sleep(rng.random() * 0.15)
        name = rng.choice(list(running))
        end(name, running[name], kill=True)
        with Store.open(tmp_path) as store:
            assert store.integrity() == []
            for adder, first in firsts.items():  # what was confirmed is there
                for k in range(first, confirmed[adder]):
                    assert len(store.rows("SELECT 1 FROM sources WHERE source = ?",
                                          (f"/texts/{k}",))) == 1  # fmt: skip
        running[name] = begin(name)
    for name in firsts:
        end(name, running[name], kill=False)
    (tmp_path / "stop").touch()
    end("lease", running["lease"], kill=False)
    with Store.open(tmp_path) as store:
        found = store.documents(limit=10**6)
        assert len(found) == TEXTS + TEXTS // 2
        assert {one.state for one in found} == {"tokenized"}
        assert sorted(one.place for one in found if one.place is not None) == list(
            range(len(found))
        )
        for segment in store.segments():
            said = json.loads((tmp_path / f"segment-{segment}").read_text())
            there = sorted((d for d in found if d.segment == segment), key=lambda d: d.place or 0)
            assert said == [one.hash for one in there]
        assert store.rows("SELECT count(*) FROM contents") == [(0,)]
        assert store.integrity() == []


def test_two_processes_add_while_one_leases(tmp_path: Path) -> None:
    Store.open(tmp_path, create=True).close()
    adders = [Script(ADD, tmp_path, first, TEXTS) for first in (0, TEXTS // 2)]
    leaser = Script(LEASE, tmp_path, 1)
    for adder in adders:
        adder.well()
    (tmp_path / "stop").touch()
    leaser.well()
    with Store.open(tmp_path) as store:
        assert store.counts()["tokenized"][0] == TEXTS + TEXTS // 2
        shared = store.rows(
            "SELECT count(*), min(arrivals), max(arrivals) FROM sources WHERE arrivals > 1"
        )
        assert shared == [(TEXTS // 2, 2, 2)]
        assert store.add([Arrival("text 7 " * 8, "-")]).known == 1
