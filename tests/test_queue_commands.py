"""The queue from the command line: what is added is there once, and what is asked is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import invoke, run

from crystalline.__main__ import main
from crystalline.errors import DataError
from crystalline.pipeline import gather
from crystalline.pipeline.gather import queue_paths
from crystalline.progress import Lines, left_out
from crystalline.store import Pass, Placed, Store
from crystalline.store import meter as meter_module
from crystalline.store.models import create_model

Fails = Callable[..., None]


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model called mine, in the folder of models."""
    monkeypatch.setenv("CRYSTALLINE_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    return create_model("mine", {})


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with three texts in two files each, one picture and a hidden file."""
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for n in range(3):
        (folder / f"{n}.txt").write_text(f"text {n}\n" * 10)
        (folder / "deep" / f"{n}.txt").write_text(f"text {n}\n" * 10)
    (folder / "picture").write_bytes(b"\0\1\2")
    (folder / ".hidden").write_text("hidden")
    return folder


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """A command that must fail with a code, in one line with some words."""

    def check(code: int, says: str, *args: Any) -> None:
        assert main([str(arg) for arg in args]) == code
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("crystalline: error: ") and says in err, err

    return check


def listed(*words: Any) -> Any:
    return json.loads(invoke("queue", "list", "mine", "--json", *words))


def test_a_folder_is_queued(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "add", "mine", str(texts)]) == 0
    out, err = capsys.readouterr()
    assert out == "queued 3 texts, 210B, 3 texts known already\n"
    assert err.splitlines()[0] == "skipped 2 files or folders: 1 hidden, 1 binary"
    said = json.loads(invoke("queue", "add", "mine", texts, "--json"))
    assert (said["new"], said["known"], said["bytes"], len(said["skipped"])) == (0, 6, 0, 2)
    found = listed()
    assert found["states"]["pending"] == {"documents": 3, "bytes": 210}
    sources = [one["source"] for one in found["documents"]]
    assert sources == [str(texts / f"{n}.txt") for n in range(3)]


def test_standard_input_a_url_priority_and_weight(model: Path) -> None:
    words = ("--url", "https://a/b", "--priority", "3", "--weight", "2")
    with open(__file__) as text:
        code, out, err = run("queue", "add", "mine", "-", *words, stdin=text)
    assert (code, err) == (0, "") and out.startswith("queued 1 text, ")
    (one,) = listed()["documents"]
    assert (one["source"], one["priority"], one["weight"]) == ("https://a/b", 3, 2)
    with Store.open(model) as store:
        assert store.lease()[0].text == Path(__file__).read_text()


@pytest.mark.parametrize("data", [b"\0\1", b"", b"\xff\xfe\xfd" * 9], ids=len)
def test_standard_input_that_is_no_text(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(data)
    with open(tmp_path / "data") as stdin:
        code, _, err = run("queue", "add", "mine", "-", stdin=stdin)
    assert code == 2 and err.startswith("crystalline: error: -: cannot train on it, ")


def test_standard_input_that_is_too_long(
    monkeypatch: pytest.MonkeyPatch, fails: Fails, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("more than four")
    monkeypatch.setattr(gather, "MAX_FILE_BYTES", 4)
    with open(tmp_path / "data") as stdin:
        monkeypatch.setattr(gather.sys, "stdin", stdin)
        fails(2, "-: more than 0 MiB; cut it with split -C", "queue", "add", "mine", "-")


def test_every_encoding_gives_the_same_document(tmp_path: Path) -> None:
    text = "Wörter\r\nund Zeilen\n"
    for name in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / f"{name}.txt").write_bytes(text.encode(name))
    out = invoke("queue", "add", "mine", *tmp_path.glob("*.txt"))
    assert out.endswith(", 2 texts known already\n")
    (one,) = listed()["documents"]
    assert one["bytes"] == len(text.encode())


def test_what_cannot_be_added(texts: Path, tmp_path: Path, fails: Fails) -> None:
    fails(2, "nowhere: no such file or folder; check", "queue", "add", "mine", "nowhere")
    fails(2, "picture: cannot train on it, binary", "queue", "add", "mine", texts / "picture")
    fails(2, "mime: no such model; did you mean mine?", "queue", "add", "mime", texts)
    fails(2, "http://x: is the source of one text, but several are given; give one",
          "queue", "add", "mine", texts, "--url", "http://x")  # fmt: skip
    fails(2, "weight is 0, but must be a whole number", "queue", "add", "mine", texts,
          "--weight", "0")  # fmt: skip
    fails(2, "Missing argument", "queue", "add", "mine")
    assert listed()["documents"] == []


def test_the_list_shows_a_part_at_a_time(texts: Path) -> None:
    assert invoke("queue", "list", "mine").startswith("the queue is empty; fill it with")
    invoke("queue", "add", "mine", texts)
    lines = invoke("queue", "list", "mine", "--limit", "2").splitlines()
    assert lines[0] == "3 documents: 3 pending (210B)"
    assert lines[1].split()[:3] == ["id", "hash", "state"] and lines[2].split()[2] == "pending"
    assert lines[4] == "--after 2 shows those that follow, --limit more of them at once"
    assert [one["id"] for one in listed("--after", 2)["documents"]] == [3]
    assert len(invoke("queue", "list", "mine", "--state", "dead").splitlines()) == 1


def test_retry_remove_clear(model: Path, texts: Path, fails: Fails) -> None:
    invoke("queue", "add", "mine", texts)
    with Store.open(model) as store:
        for one in store.lease():
            store.failed(one.id, "no reason", attempts=1)
    assert "dead" in invoke("queue", "show", "mine", "1")
    assert "no reason (1 attempt)" in invoke("queue", "show", "mine", "1")
    assert invoke("queue", "retry", "mine", "2") == "retried 1 document\n"
    assert invoke("queue", "retry", "mine") == "retried 2 documents\n"
    assert json.loads(invoke("queue", "remove", "mine", "1", "--json")) == {"removed": 1}
    fails(2, "1: no such document in the queue", "queue", "remove", "mine", "1")
    with Store.open(model) as store:
        (leased,) = store.lease(1)
        fails(2, "is being tokenized; remove it when", "queue", "remove", "mine", leased.id)
        fails(2, "Forget 1 document of mine? Say --yes", "queue", "clear", "mine")
        fails(2, "state is 'leased', but only pending", "queue", "clear", "mine", "--state",
              "leased", "--yes")  # fmt: skip
        words = ("--yes", "--state", "pending")
        assert invoke("queue", "clear", "mine", *words) == "removed 1 document\n"
        assert invoke("queue", "clear", "mine") == "removed 0 documents\n"
        assert store.counts()["leased"][0] == 1


def test_provenance(model: Path, texts: Path) -> None:
    invoke("queue", "add", "mine", texts)
    with Store.open(model) as store:
        a, b, c = store.lease()
        store.tokenized(4, [Placed(c.id, 7, 900, 33), Placed(a.id, 8, 933, 30)])
        store.record_passes([Pass(0, ((0, 8),), 2, 5), Pass(1, ((0, 9),), 5)])
    shown = invoke("queue", "provenance", "mine", c.hash[:12])
    for words in (f"{texts}/2.txt, 20", f"{texts}/deep/2.txt, 20",
                  "33 from 900 on: place 7, segment 4", "pass 0: from step 2, to 5",
                  "pass 1: from step 5, under way", c.hash):  # fmt: skip
        assert words in shown
    every = [json.loads(line) for line in invoke("queue", "provenance", "mine", "--json")
             .splitlines()]  # fmt: skip
    assert [one["tokens"] and one["tokens"]["place"] for one in every] == [8, None, 7]
    assert [[p["pass"] for p in one["passes"]] for one in every] == [[1], [], [0, 1]]
    assert len(invoke("queue", "provenance", "mine", "--json", "--after", "2").splitlines()) == 1
    said = json.loads(invoke("queue", "show", "mine", str(texts / "1.txt"), "--json"))
    assert said["id"] == b.id and said["owner"]
    assert "leased by " in invoke("queue", "show", "mine", b.id)


def test_a_model_older_than_its_queue(tmp_path: Path, model: Path, texts: Path) -> None:
    os.unlink(model / "state.db")
    (model / "checksums.json").touch()
    assert invoke("queue", "list", "mine").startswith("the queue is empty")
    assert not (model / "state.db").exists()
    invoke("queue", "add", "mine", texts)
    assert len(listed()["documents"]) == 3


def test_names_that_would_steer_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m\n.txt").write_text("text")
    invoke("queue", "add", "mine", tmp_path / "a\x1b[31m\n.txt")
    for words in (("list",), ("show", "1"), ("provenance",)):
        assert "\\x1b[31m\\n.txt" in invoke("queue", words[0], "mine", *words[1:])


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")
    Path(path).write_text("text")
    invoke("queue", "add", "mine", path)
    assert listed()["documents"][0]["source"].endswith("/\ufffd.txt")


def test_what_takes_long_tells_how_far_it_is(
    model: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meter_module, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(meter_module, "TOLD_EVERY", 0.0)
    events: list[dict[str, Any]] = []
    with Store.open(model) as store:
        queue_paths(store, [str(texts)], on_event=events.append)
    assert [(e["phase"], e["total"]) for e in events] == [("queue", 423)] * 7
    assert events[-1]["done"] == 423 and events[0]["eta"] > 0
    Lines()({**events[0], "eta": 65})
    assert capsys.readouterr().err == "adding to the queue: 17 % of 423B, 1:05 left\n"


def test_a_file_that_changes_while_it_is_found_is_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    real = os.fstat
    grown: list[int] = []

    def growing(fd: int) -> os.stat_result:
        status = real(fd)
        if not grown:
            grown.append(fd)
            (tmp_path / "a.txt").write_text("longer than before")
            os.unlink(tmp_path / "b.txt")
        return status

    monkeypatch.setattr("crystalline.data.reading.os.fstat", growing)
    with Store.open(model) as store:
        done = queue_paths(store, [str(tmp_path / n) for n in ("a.txt", "b.txt", "c.txt")])
    assert done.added == (1, 0, 5)
    assert [one.reason.split(" (")[0] for one in done.skipped] == [
        "changing: give it again when it is whole", "unreadable: No such file or directory"
    ]  # fmt: skip
    with Store.open(model) as store, pytest.raises(DataError, match="no such file"):
        queue_paths(store, [str(tmp_path / "b.txt")])
    assert left_out([]) == []
