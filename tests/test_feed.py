"""A model that is trained from its queue: every document once an epoch, whenever it came."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import run
from conftest import TINY, prose
from test_training import fingerprint

import crystalline
from crystalline.checkpoints.checkpoint import load_training
from crystalline.data.batches import NO_LOSS
from crystalline.errors import StoreError, UsageError
from crystalline.pipeline import feed as pipeline_feed
from crystalline.pipeline.fed import feed, feeding, model_to_feed
from crystalline.pipeline.gather import queue_paths
from crystalline.store import Arrival, Store
from crystalline.store.models import create_model
from crystalline.training.trainer import Trainer

SIZES = {k: v for k, v in TINY.items() if k not in ("steps", "minutes", "epochs")}
KILLS = int(os.environ.get("CRYSTALLINE_KILLS", "4"))


def texts(count: int, seed: int = 0) -> list[str]:
    """Documents of many lengths, no two alike."""
    rng, words = random.Random(seed), prose(3000).split()
    made = []
    for i in range(count):
        first = rng.randrange(len(words) - 200)
        made.append(f"{seed} {i} " + " ".join(words[first : first + rng.randrange(1, 150)]))
    return made


def made(tmp_path: Path, count: int, name: str = "m", **more: Any) -> Path:
    """A model without a checkpoint, with a queue."""
    folder = create_model(tmp_path / name, {**SIZES, **more})
    with Store.open(folder) as store:
        store.add(Arrival(text, f"text {i}") for i, text in enumerate(texts(count)))
    return folder


def predictions(trainer: Trainer) -> Counter[int]:
    """How often each token of the text is predicted in all the sequences trained so far."""
    seen: Counter[int] = Counter()
    batches, split = trainer.batches, trainer.batches.split
    before, tokens = trainer.batches.batch_size, trainer.store.train.slice(0, split.tokens)
    batches.batch_size = 1
    for sequence in range(trainer.progress.sequences):
        section = batches._row(sequence)
        for start, length in section:
            seen.update(range(start + 1, start + length + 1))
            got = batches.batch(sequence).targets
            assert set(got[got != NO_LOSS]) <= set(tokens)
    batches.batch_size = before
    return seen


def test_every_document_is_trained_once_an_epoch(tmp_path: Path) -> None:
    folder = made(tmp_path, 9)
    with feeding(folder, epochs=3, flush=True) as trainer:
        trainer.run()
        seen = predictions(trainer)
    starts = set(trainer.store.train.offsets[:-1].tolist())
    wanted = {i: 3 for i in range(trainer.store.train.tokens) if i not in starts}
    assert dict(seen) == wanted
    with Store.open(folder, read_only=True) as store:
        assert store.counts()["trained"][0] == 9
        assert {d.epochs for d in store.documents()} == {3}
        assert all(len(one["passes"]) == 3 for one in store.provenance())


def test_weight_is_how_often_a_document_is_in_an_epoch(tmp_path: Path) -> None:
    folder = made(tmp_path, 3)
    with Store.open(folder) as store:
        store.add([Arrival("many times the same " * 9, "-")], weight=4)
    with feeding(folder, epochs=2, flush=True) as trainer:
        trainer.run()
        often = set(predictions(trainer).values())
    assert often == {2, 8}


def test_a_part_of_a_step_waits_for_more_text(tmp_path: Path) -> None:
    folder = made(tmp_path, 4)
    feed(folder)
    state = load_training(folder)[1]
    taken = state["progress"]["sequences"]
    assert taken % SIZES["batch_size"] == 0
    with pytest.raises(UsageError, match=r"sequences wait, and a step takes \d+"):
        feed(folder)
    with Store.open(folder) as store:
        store.add(Arrival(text, "later") for text in texts(20, seed=5))
    with feeding(folder, flush=True) as trainer:
        trainer.run()
        assert set(predictions(trainer).values()) == {1}
    with pytest.raises(UsageError, match="nothing waits in its queue"):
        feed(folder, flush=True)


def test_the_same_text_is_one_document_however_often_it_comes(tmp_path: Path) -> None:
    folder = made(tmp_path, 5)
    feed(folder, flush=True)
    with Store.open(folder) as store:
        again = store.add(Arrival(text, "again") for text in texts(5))
        assert (again.new, again.known) == (0, 5)
    with pytest.raises(UsageError, match="nothing waits"):
        feed(folder, flush=True)


def test_more_epochs_are_trained_when_they_are_asked_for(tmp_path: Path) -> None:
    folder = made(tmp_path, 5)
    feed(folder, flush=True)
    with Store.open(folder) as store:
        store.add(Arrival(text, "later") for text in texts(5, seed=1))
    with feeding(folder, flush=True, epochs=3) as trainer:
        trainer.run()
        assert set(predictions(trainer).values()) == {3}


def test_a_model_of_files_goes_on_with_its_queue(tmp_path: Path) -> None:
    for i, text in enumerate(texts(12)):
        (tmp_path / f"{i:02d}.txt").write_text(text)
    paths = sorted(tmp_path.glob("*.txt"))
    out = tmp_path / "m"
    crystalline.train(paths, out, steps=3, **SIZES)
    with Store.open(out) as store:
        assert store.counts()["tokenized"][0] + store.counts()["held_out"][0] == 12
        known = store.add(Arrival(path.read_text(), "again") for path in paths)
        assert known.new == 0
        queue_paths(store, [str(paths[0])])
        store.add([Arrival("a text that is new to it " * 20, "-")])
    before = load_training(out)[1]["progress"]["sequences"]
    with feeding(out, flush=True) as trainer:
        trainer.run()
        assert trainer.progress.sequences > before
        assert set(predictions(trainer).values()) == {1}  # the pass that was begun was ended


def test_a_text_that_comes_twice_is_learnt_once(tmp_path: Path) -> None:
    for name, text in (("a", "one and the same\n" * 30), ("b", prose(300)), ("c", prose(200))):
        (tmp_path / name).write_text(text)
    (tmp_path / "d").write_text("one and the same\n" * 30)
    events: list[dict[str, Any]] = []
    crystalline.train([tmp_path / n for n in "abcd"], tmp_path / "m", steps=1, **SIZES,
                      on_event=events.append)  # fmt: skip
    (data,) = [e for e in events if e["event"] == "data"]
    assert data["files"] == 3
    assert "same text as" in data["skipped"][0]["reason"]


def test_few_arguments_mean_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create_model("one", SIZES, "models")
    (tmp_path / "text").write_text("x")
    assert model_to_feed(["one"], None, False) == Path("models/one")
    assert model_to_feed(["models/one"], None, False) == Path("models/one")
    assert model_to_feed(["text"], None, False) is None
    assert model_to_feed(["one", "text"], None, False) is None
    with pytest.raises(UsageError, match="name one model"):
        model_to_feed(["one", "text"], None, True)
    with pytest.raises(UsageError, match="one"):
        model_to_feed(["onne"], None, True)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"minutes": 1.0}, "a queue is trained by epochs"),
        ({"epochs": 1.5}, "a queue wants a whole number"),
    ],
)
def test_what_a_queue_does_not_take(tmp_path: Path, said: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        feed(made(tmp_path, 2), **said)


def test_an_empty_queue_makes_no_model(tmp_path: Path) -> None:
    folder = create_model(tmp_path / "m", SIZES)
    with pytest.raises(UsageError, match="nothing waits in its queue"):
        feed(folder)
    code, _, error = run("train", folder, "--flush")
    assert code == 2
    assert "crystalline queue add" in error


def test_a_tenth_of_many_documents_is_held_out(tmp_path: Path) -> None:
    folder = made(tmp_path, 20)
    with feeding(folder, flush=True) as trainer:
        trainer.run()
        assert trainer.progress.validation is not None
    with Store.open(folder, read_only=True) as store:
        assert store.counts()["held_out"][0] in (1, 2)


def test_two_processes_feed_while_it_trains(tmp_path: Path) -> None:
    folder = made(tmp_path, 8)
    script = (
        "import sys, time\n"
        "from crystalline.store import Arrival, Store\n"
        "from test_feed import texts\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    for text in texts(60, seed=int(sys.argv[2])):\n"
        "        store.add([Arrival(text, sys.argv[2])])\n"
        "        time.sleep(0.01)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    children = [
        subprocess.Popen([sys.executable, "-c", script, str(folder), str(seed)], env=environment)
        for seed in (7, 8)
    ]
    while any(child.poll() is None for child in children):
        with feeding(folder, epochs=2) as trainer:
            trainer.run()
        with Store.open(folder) as store:
            while any(c.poll() is None for c in children) and not store.has_pending():
                time.sleep(0.02)
    assert all(child.returncode == 0 for child in children)
    with feeding(folder, epochs=2, flush=True) as trainer:
        trainer.run()
        assert set(predictions(trainer).values()) == {2}
    with Store.open(folder, read_only=True) as store:
        assert store.integrity() == []
        counts = store.counts()
        assert counts["trained"][0] == len({*texts(8), *texts(60, 7), *texts(60, 8)})


def test_files_that_come_into_a_folder_are_trained(tmp_path: Path) -> None:
    folder, inbox = create_model(tmp_path / "m", SIZES), tmp_path / "inbox"
    inbox.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "crystalline", "train", str(folder), "--watch", str(inbox),
         "--flush"], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines: list[str] = []
    assert child.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(child.stderr or ()))
    reader.start()
    try:
        for i, text in enumerate(texts(6)):
            (tmp_path / "beside").write_text(text)
            (tmp_path / "beside").rename(inbox / f"{i}.txt")
            until = time.monotonic() + 60
            while time.monotonic() < until:
                assert child.poll() is None, lines
                with Store.open(folder, read_only=True) as store:
                    if store.counts()["trained"][0] == i + 1:
                        break
                time.sleep(0.05)
            else:
                raise AssertionError(f"text {i} was not trained: {lines[-20:]}")
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(60)
        reader.join()
    assert child.returncode in (0, 130), lines
    assert any("waiting for text" in line for line in lines)


SCRIPT = """
import sys
import crystalline.training.trainer as t
from crystalline.pipeline.fed import feed
real = t.Trainer._between_steps
def between(self, before):
    real(self, before)
    self.save()
t.Trainer._between_steps = between
try:
    feed(sys.argv[1], epochs=int(sys.argv[2]), flush=True)
except Exception as error:
    print(error, file=sys.stderr)
    sys.exit(0 if "nothing waits" in str(error) else 1)
"""


def test_killed_at_random_every_document_is_trained_once_an_epoch(tmp_path: Path) -> None:
    epochs = 2 + KILLS
    whole, folder = made(tmp_path, 9, "whole"), made(tmp_path, 9, "killed")
    feed(whole, epochs=epochs, flush=True)
    rng, kills = random.Random(1), 0
    argv = [sys.executable, "-c", SCRIPT, str(folder), str(epochs)]
    while kills < KILLS:
        log = folder / "state.db-wal"
        before = log.stat().st_mtime_ns if log.exists() else 0
        child = subprocess.Popen(argv, stderr=subprocess.PIPE)
        until = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < until:
            if log.exists() and log.stat().st_mtime_ns != before:
                break
            time.sleep(0.002)
        time.sleep(rng.random() * 0.3)
        if child.poll() is not None:
            assert child.returncode == 0, child.communicate()[1].decode()
            break
        child.kill()
        child.communicate()
        kills += 1
    assert kills > 0
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert fingerprint(folder) == fingerprint(whole)
    with Store.open(folder, read_only=True) as store:
        assert store.integrity() == []
        assert {(d.state, d.epochs) for d in store.documents()} == {("trained", epochs)}
        assert all(len(one["passes"]) == epochs for one in store.provenance())
    with feeding(folder, epochs=epochs + 1, flush=True) as trainer:
        assert set(predictions(trainer).values()) == {epochs}
    print(f"{kills} kills in {load_training(folder)[1]['progress']['step']} steps")


def test_a_take_in_that_fails_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails once while text joins a running training: it is told, and taken in later."""
    folder = made(tmp_path, 8)
    real, fails = Store.tokenized, [1]
    monkeypatch.setattr(pipeline_feed, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(pipeline_feed, "RETRY_SECONDS", 0.01)

    def tokenized(self: Store, segment: int, *args: Any, **more: Any) -> None:
        if segment and fails:
            fails.pop()
            raise StoreError("the disk is full")
        real(self, segment, *args, **more)

    monkeypatch.setattr(Store, "tokenized", tokenized)
    events: list[dict[str, Any]] = []

    def heard(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "step" and event["step"] == 2:
            with Store.open(folder) as store:
                store.add(Arrival(text, "later") for text in texts(4, seed=3))

    with feeding(folder, epochs=2, flush=True, on_event=heard) as trainer:
        trainer.run()
        assert set(predictions(trainer).values()) == {2}
    assert any("taken in later" in e["message"] for e in events if e["event"] == "warning")
    with Store.open(folder, read_only=True) as store:
        assert store.counts()["leased"][0] == 0
        assert store.segments() == [0, 1]


def test_a_command_while_it_waits_is_kept(tmp_path: Path) -> None:
    folder, inbox = made(tmp_path, 5), tmp_path / "inbox"
    inbox.mkdir()
    with feeding(folder, flush=True, watch=[inbox]) as trainer:
        node = trainer.start()
        while trainer.progress.step < trainer.progress.course.steps or trainer.feed.left != 0:
            time.sleep(0.01)
        time.sleep(0.5)
        node.set(learning_rate=0.00123)
        node.stop()
        node.wait()
    state = load_training(folder)[1]
    assert state["recipe"]["lr"] == 0.00123
    assert [c["command"] for c in state["commands"]][:1] == ["SET"]


def test_many_small_arrivals_keep_few_files_open(tmp_path: Path) -> None:
    folder = made(tmp_path, 5)
    feed(folder, flush=True)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(30):
        with Store.open(folder) as store:
            store.add([Arrival(f"{i} a text of its own", "-")])
        with feeding(folder, flush=True) as trainer:
            trainer.begin()
            trainer.close()
            assert len(os.listdir("/proc/self/fd")) < before + 30
    with Store.open(folder, read_only=True) as store:
        assert len(store.segments()) == 31


def test_the_text_of_a_queue_is_not_written_over(tmp_path: Path) -> None:
    folder = made(tmp_path, 5)
    with feeding(folder, flush=True):
        pass  # tokenized, and no checkpoint
    (tmp_path / "a.txt").write_text(prose(300))
    with pytest.raises(UsageError, match="is made of its queue"):
        crystalline.train(tmp_path / "a.txt", folder, steps=1, **SIZES)
    feed(folder, flush=True)
    with pytest.raises(UsageError, match="is trained from its queue"):
        crystalline.train(out=folder, resume=True, steps=50)
