"""state.db: what is added, leased and marked is there, once, and errors leave all as it was."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crystalline.errors import DataError, StoreError, UsageError
from crystalline.store import Added, Arrival, Pass, Placed, Store
from crystalline.store import documents as documents_module
from crystalline.store import queue as queue_module
from crystalline.store.schema import APPLICATION, FORMAT, STEPS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path, create=True) as opened:
        yield opened


def texts(*said: str) -> list[Arrival]:
    return [Arrival(text, f"/texts/{text[:20]}") for text in said]


def states(store: Store) -> dict[str, int]:
    return {state: n for state, (n, _) in store.counts().items() if n}


def dump(folder: Path) -> list[str]:
    """All that is in the file."""
    db = sqlite3.connect(folder / "state.db")
    try:
        return list(db.iterdump())
    finally:
        db.close()


def test_a_text_is_queued_once_however_often_it_arrives(store: Store) -> None:
    assert store.add([*texts("one", "two", "one"), Arrival("one", "-")]) == Added(2, 2, 6)
    assert store.add([Arrival("two", "http://x")]) == Added(0, 1, 0)
    assert states(store) == {"pending": 2}
    one, two = store.documents()
    assert [(s["source"], s["arrivals"]) for s in store.sources(one.id)] == [
        ("-", 1), ("/texts/one", 2)
    ]  # fmt: skip
    assert [s["source"] for s in store.sources(two.id)] == ["/texts/two", "http://x"]
    assert one.hash == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


@pytest.mark.parametrize(
    "text", ["a", "wörter " * 5000, os.urandom(3000).hex(), "\ud7ff\U0010ffff"], ids=len
)
def test_a_text_comes_back_as_it_was(store: Store, text: str) -> None:
    store.add([Arrival(text, "-")])
    (leased,) = store.lease()
    assert leased.text == text and leased.bytes == len(text.encode())


def test_higher_priority_first_then_in_order_of_arrival(store: Store) -> None:
    store.add(texts("a", "b"))
    store.add(texts("c", "d"), priority=5, weight=3)
    store.add(texts("e"), priority=-1)
    assert [(one.text, one.weight) for one in store.lease(3)] == [("c", 3), ("d", 3), ("a", 1)]
    assert [one.text for one in store.lease()] == ["b", "e"]
    assert store.lease() == []


def test_a_lease_takes_so_many_bytes_but_one_document_at_least(store: Store) -> None:
    store.add(texts("a" * 100, "b" * 50, "c" * 60, "d"))
    assert [len(one.text) for one in store.lease(bytes=10)] == [100]
    assert [len(one.text) for one in store.lease(bytes=110)] == [50, 60]


def test_leases_end_and_heartbeats_keep_them(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(queue_module.time, "time", lambda: now[0])
    store.add(texts("a"))
    (mine,) = store.lease(seconds=60)
    with Store.open(tmp_path) as other:
        now[0] = 1059
        assert store.heartbeat(60) == 1 and other.lease() == []
        now[0] = 1118
        assert other.lease() == []
        now[0] = 1119
        (theirs,) = other.lease()
        assert theirs == mine
        for end in (
            lambda: store.tokenized(1, [Placed(mine.id, 0, 0, 3)]),
            lambda: store.failed(mine.id, "late"),
        ):
            with pytest.raises(StoreError, match="not leased by this process any more"):
                end()
        assert store.segments() == [] and store.release() == 0 and store.heartbeat() == 0
        assert other.release([mine.id]) == 1 and states(other) == {"pending": 1}
        other.lease()
    assert store.reclaim() == 1 and states(store) == {"pending": 1}
    assert store.documents()[0].attempts == 0  # it is not the text's fault


def test_failures_are_tried_again_and_end_dead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(queue_module.time, "time", lambda: now[0])
    store.add(texts("a"))
    for wait, state in ((30, "failed"), (60, "failed"), (0, "dead")):
        (one,) = store.lease()
        assert store.failed(one.id, "why") == state
        now[0] += wait - 1
        assert store.lease() == []
        now[0] += 1
    assert store.lease() == []
    (one,) = [store.find("1")]
    assert (one.state, one.attempts, one.error) == ("dead", 3, "why")
    assert store.retry() == 1 and store.retry() == 0
    assert store.lease()[0].text == "a"


def test_tokenized_documents_are_known_by_their_place(store: Store) -> None:
    store.add(texts("a", "b", "c"))
    a, b, c = store.lease()
    store.tokenized(0, [Placed(b.id, 0, 0, 3), Placed(a.id, 1, 3, 4)], held_out=[c.id])
    assert states(store) == {"tokenized": 2, "held_out": 1}
    assert store.segments() == [0] and store.lacking() == [(0, 1, 0), (1, 1, 0)]
    assert store.rows("SELECT count(*) FROM contents") == [(0,)]
    assert store.add(texts("a", "c")) == Added(0, 2, 0)
    with pytest.raises(StoreError, match="segment 0 counts already"):
        store.tokenized(0, [])
    (traced,) = store.provenance(a.id)
    assert traced["tokens"] == {"segment": 0, "place": 1, "first": 3, "number": 4}


def test_a_segment_counts_whole_or_not_at_all(tmp_path: Path, store: Store) -> None:
    store.add(texts("a", "b"))
    a, b = store.lease()
    store.release([b.id])
    before = dump(tmp_path)
    with pytest.raises(StoreError, match=f"document {b.id} is not leased"):
        store.tokenized(1, [Placed(a.id, 0, 0, 3), Placed(b.id, 1, 3, 3)])
    assert dump(tmp_path) == before


def test_a_damaged_text_is_no_reason_to_stop(store: Store) -> None:
    store.add(texts("a", "b" * 1000, "c"))
    with store.transaction() as db:
        db.execute("UPDATE contents SET body = x'00' WHERE document = 1")
        db.execute("DELETE FROM contents WHERE document = 2")
    assert [one.text for one in store.lease()] == ["c"]
    assert states(store) == {"failed": 2, "leased": 1}
    assert "is damaged" in str(store.documents("failed")[0].error)


def test_passes_say_what_has_been_trained(store: Store) -> None:
    store.add(texts(*"abcd"))
    store.tokenized(0, [Placed(one.id, n, n, 1) for n, one in enumerate(store.lease())])
    one, two = Pass(0, ((0, 3),), 0, 10), Pass(1, ((0, 2), (3, 4)), 10, None)
    store.record_passes([one, two])
    assert states(store) == {"trained": 3, "tokenized": 1}
    assert store.lacking() == [(3, 1, 0)] and store.get("epochs_trained") == 1
    store.set(target_epochs=2)
    assert states(store) == {"tokenized": 4}
    store.record_passes([one, Pass(1, two.places, 10, 21)])
    assert [d.epochs for d in store.documents()] == [2, 2, 1, 1]
    assert states(store) == {"trained": 2, "tokenized": 2}
    assert [p["pass"] for p in next(store.provenance(3))["passes"]] == [0]
    store.record_passes([one, two])  # an earlier checkpoint
    assert [d.epochs for d in store.documents()] == [1, 1, 1, 0]
    with store.transaction() as db:
        db.execute("UPDATE documents SET epochs = 7 WHERE place = 3")
    store.record_passes([one, two], afresh=True)
    assert [d.epochs for d in store.documents()] == [1, 1, 1, 0]
    assert store.passes() == [one, two]


def test_runs_and_what_happened(store: Store) -> None:
    first = store.run_begun(0, threads=2)
    store.note("learning_rate", 5, first, value=0.1)
    second = store.run_begun(7)
    store.run_ended(second, 9, "done")
    runs = store.runs()
    assert [(r["first_step"], r["last_step"], r["outcome"]) for r in runs] == [
        (0, None, "killed"), (7, 9, "done")
    ]  # fmt: skip
    assert runs[0]["said"] == {"threads": 2} and runs[1]["ended"] >= runs[1]["began"]
    (note,) = store.history()
    assert (note["kind"], note["step"], note["said"]) == ("learning_rate", 5, {"value": 0.1})


def test_what_waits_can_be_removed_and_nothing_else(store: Store) -> None:
    store.add(texts(*"abcde"))
    a, b = store.lease(2)
    store.tokenized(0, [Placed(a.id, 0, 0, 1)])
    for one, said in ((a, "part of the model's text"), (b, "is being tokenized")):
        with pytest.raises(UsageError, match=said):
            store.remove([3, one.id])
    assert store.remove([3]) == 1 and states(store) == {"pending": 2, "leased": 1, "tokenized": 1}
    assert store.clear() == 2
    assert store.rows("SELECT count(*) FROM contents")[0] == (1,) and store.integrity() == []
    with pytest.raises(UsageError, match="state is 'leased', but only pending, failed, dead"):
        store.clear(["leased"])


def test_documents_are_found(store: Store) -> None:
    store.add(texts("one", "two"))
    for name in ("1", " 7692C3AD35", "/texts/one", store.documents()[0].hash):
        assert store.find(name).id == 1
    store.add([Arrival("three", "/texts/one")])
    for name, said in (("9", "no such document"), ("/texts/one", "several documents: 1, 3"),
                       ("zz", "no such"), ("", "no such")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            store.find(name)
    assert [one.id for one in store.documents(limit=1, after=1)] == [2]
    assert store.documents("dead") == []
    with pytest.raises(UsageError, match="state is 'lost', but must be one of pending, leased"):
        store.documents("lost")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"weight": 0}, "weight is 0, but must be a whole number from 1 to 1000; choose 1"),
     ({"weight": True}, "weight is True"), ({"priority": 2**40}, "priority is 1099511627776")],
)  # fmt: skip
def test_bad_numbers_are_refused(store: Store, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        store.add(texts("a"), **options)


def test_no_text_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="-: empty; give some text"):
        store.add([Arrival("", "-")])
    with pytest.raises(DataError, match="-: character 1 is half a surrogate pair"):
        store.add([Arrival("a\ud800", "-")])
    assert states(store) == {}


@pytest.mark.parametrize(("limit", "most"), [("ROWS", 2), ("BYTES", 2)])
def test_batches_are_told_of_as_they_are_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(documents_module, limit, most)
    told: list[Added] = []
    store.add(texts(*"abcab"), on_batch=told.append)
    assert told == [Added(2, 0, 2), Added(3, 1, 3), Added(3, 2, 3)]


def test_what_was_queued_before_a_bad_text_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "ROWS", 2)
    with pytest.raises(DataError):
        store.add(texts("a", "b", "c", ""))
    assert states(store) == {"pending": 2}


def test_the_file_shrinks_again(tmp_path: Path, store: Store) -> None:
    store.add(texts(os.urandom(1 << 20).hex()))
    store.clear()
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert os.path.getsize(tmp_path / "state.db") < 200_000


# --- the file -------------------------------------------------------------------------------------


def test_settings_that_keep_what_was_written(store: Store) -> None:
    for name, want in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1),
                       ("user_version", FORMAT), ("application_id", APPLICATION)):  # fmt: skip
        assert store.rows(f"PRAGMA {name}") == [(want,)], name


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"state.db: the file is missing; queue a text first"):
        Store.open(tmp_path)
    with Store.open(tmp_path, read_only=True) as store:
        assert states(store) == {} and store.documents() == []
    assert os.listdir(tmp_path) == []
    with pytest.raises(StoreError, match="nowhere: no such folder; create it first"):
        Store.open(tmp_path / "nowhere", create=True)


def test_an_older_format_is_brought_up_to_date(tmp_path: Path) -> None:
    """A file of format 1, as the first version made it."""
    db = sqlite3.connect(tmp_path / "state.db")
    db.executescript(STEPS[0])
    assert db.execute("SELECT 1 FROM sqlite_master WHERE name = 'seen'").fetchone() is None
    db.execute(
        "INSERT INTO documents (hash, bytes, weight, priority, state, added) "
        "VALUES (?, 3, 1, 0, 'pending', 5.0)", (hashlib.sha256(b"one").digest(),)
    )  # fmt: skip
    db.execute("INSERT INTO contents VALUES (1, 0, ?)", (b"one",))
    db.execute("INSERT INTO meta VALUES ('target_epochs', '3')")
    db.execute(f"PRAGMA application_id = {APPLICATION}")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    with Store.open(tmp_path, read_only=True) as store:  # which does so before it reads
        assert store.rows("PRAGMA user_version") == [(FORMAT,)]
        assert store.get("target_epochs") == 3 and store.integrity() == []
        with pytest.raises(StoreError, match="may not be written"):
            store.add(texts("b"))
    with Store.open(tmp_path) as store:
        assert store.lease()[0].text == "one"
        store.remember([])


def test_a_newer_format_is_refused(tmp_path: Path, store: Store) -> None:
    store.db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    for read_only in (False, True):
        with pytest.raises(StoreError, match=f"format {FORMAT + 1}, .*use a newer crystalline"):
            Store.open(tmp_path, read_only=read_only)


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "state.db")
    db.execute("CREATE TABLE precious (x)")
    db.close()
    before = (tmp_path / "state.db").read_bytes()
    for read_only in (False, True):
        with pytest.raises(StoreError, match="another program's database"):
            Store.open(tmp_path, read_only=read_only)
    assert (tmp_path / "state.db").read_bytes() == before


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, but long enough to be one" * 100)
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"state.db: not a database; restore the model"):
            Store.open(tmp_path, read_only=read_only)


def test_a_full_disk_leaves_all_as_it_was(tmp_path: Path, store: Store) -> None:
    store.add(texts("a", "b"))
    pages = store.rows("PRAGMA page_count")[0][0]
    store.db.execute(f"PRAGMA max_page_count = {pages + 10}")
    before = dump(tmp_path)
    with pytest.raises(StoreError, match="the disk is full; free some space"):
        store.add([*texts("c"), Arrival(os.urandom(1 << 20).hex(), "-")])
    assert dump(tmp_path) == before and store.integrity() == []
    assert store.add(texts("d")).new == 1


def test_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    with Store.open(tmp_path, create=True) as store:
        store.add(texts("a"))
    for name in os.listdir(tmp_path):
        os.chmod(tmp_path / name, stat.S_IRUSR)
    with Store.open(tmp_path, read_only=True) as store:
        assert states(store) == {"pending": 1}
        with pytest.raises(StoreError, match="may not be written; allow it, or use a copy"):
            store.lease()


def test_readers_never_wait_and_writers_do(tmp_path: Path, store: Store) -> None:
    store.add(texts("a"))
    with store.transaction() as db:
        db.execute("DELETE FROM documents")
        with Store.open(tmp_path, read_only=True) as reader:
            assert states(reader) == {"pending": 1}
        with Store.open(tmp_path, wait=0.1) as writer, pytest.raises(
            StoreError, match="another process has been writing for too long"
        ):
            writer.add(texts("b"))


def test_two_threads_make_one_file(tmp_path: Path) -> None:
    def work(n: int) -> None:
        with Store.open(tmp_path, create=True) as store:
            store.add(texts(f"text {n}"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Store.open(tmp_path) as store:
        assert states(store) == {"pending": 8} and store.integrity() == []
