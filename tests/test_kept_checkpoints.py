"""Checkpoints that are kept: which, that they are whole, and going back to any of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, invoke
from conftest import TINY, prose
from test_training import fingerprint, run, stop_at

import crystalline
from crystalline._native import available_isas
from crystalline.api import training
from crystalline.checkpoints import kept
from crystalline.checkpoints.checkpoint import FILES, load_model, load_training
from crystalline.checkpoints.info import describe, table
from crystalline.checkpoints.kept import listed
from crystalline.errors import CheckpointError, Interrupted, UsageError
from crystalline.training.trainer import Trainer
from crystalline.training.training import Training

STEPS = 20
KEPT = [6, 12, 16, 18, 20]  # saved every 2 steps, 3 of the last, every 6th for ever


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training that keeps checkpoints, and what it must be in the end."""
    folder = tmp_path_factory.mktemp("kept")
    text = folder / "prose.txt"
    text.write_text(prose(4000))
    events = run(text, folder / "m", save_steps=2, keep=3, milestones=6, threads=1)
    out = folder / "m"
    return {"text": text, "model": out, "hash": fingerprint(out), "events": events}


@pytest.fixture
def model(made: dict[str, Any], tmp_path: Path) -> Path:
    """The training as a test may change it: links, as nothing is ever written in place."""
    out = tmp_path / "m"
    for parent, _, files in os.walk(made["model"]):
        to = out / Path(parent).relative_to(made["model"])
        to.mkdir()
        for file in files:
            os.link(Path(parent) / file, to / file)
    os.unlink(out / "metrics.jsonl")
    (out / "metrics.jsonl").write_bytes((made["model"] / "metrics.jsonl").read_bytes())
    return out


def steps_of(out: Path) -> list[int]:
    return [one.step for one in listed(out)]


def whole(path: Path, step: int) -> None:
    """A kept folder is a checkpoint by itself, of that step."""
    assert load_training(path)[1]["progress"]["step"] == step
    assert isinstance(crystalline.load(path, threads=1).generate("the", max_tokens=3), str)


def test_the_last_and_the_milestones_are_kept(made: dict[str, Any]) -> None:
    out = made["model"]
    assert steps_of(out) == KEPT
    assert [one.why for one in listed(out)] == ["milestone"] * 2 + ["last"] + ["milestone", "last"]
    for one in listed(out):
        whole(one.path, one.step)
        assert {*FILES, "checksums.json", kept.NOTE} <= set(os.listdir(one.path))
    saved = [e["step"] for e in made["events"] if e["event"] == "checkpoint"]
    assert saved == list(range(0, STEPS + 1, 2))
    # Links: the last one takes no room of its own.
    for name in FILES:
        assert os.path.samefile(out / name, out / "checkpoints" / "step-00000020" / name)


def test_the_same_bits_as_without_keeping(made: dict[str, Any], tmp_path: Path) -> None:
    run(made["text"], tmp_path / "m")
    assert fingerprint(tmp_path / "m") == made["hash"]


def test_info_lists_them(made: dict[str, Any]) -> None:
    said = describe(made["model"])
    assert [one["step"] for one in said["kept"]] == KEPT
    rows = dict(table(said))
    assert (rows["milestones"], rows["kept"]) == ("step 6, 12, 18", "step 16, 20")


@pytest.mark.parametrize("step", KEPT[:-1])
def test_going_back_to_any_ends_in_the_same_bits(
    step: int, made: dict[str, Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas = available_isas()
    monkeypatch.setenv("CRYSTALLINE_ISA", isas[step % len(isas)])
    crystalline.train(out=model, resume=True, at=step, threads=1 + step % 3)
    assert fingerprint(model) == made["hash"]
    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "step"] == list(range(1, STEPS + 1))
    assert steps_of(model) == KEPT


def test_what_is_later_goes_with_the_first_save_and_not_before(
    made: dict[str, Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (model / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", refuse)
        with pytest.raises(CheckpointError, match="no room"):
            crystalline.train(out=model, resume=True, at=12, threads=1)
    assert load_training(model)[1]["progress"]["step"] == STEPS
    assert steps_of(model) == KEPT and (model / "metrics.jsonl").read_bytes() == before
    with pytest.raises(Interrupted):
        crystalline.train(out=model, resume=True, at=12, threads=1, on_event=stop_at(13))
    assert load_training(model)[1]["progress"]["step"] == 13
    assert steps_of(model) == [6, 12, 13, 18]  # the last ones of later are gone
    crystalline.train(out=model, resume=True, at=18, threads=1)  # the milestone was not
    assert fingerprint(model) == made["hash"]


def refuse(*args: Any, **options: Any) -> None:
    raise CheckpointError("no room")


def test_the_best_goes_back_too(text_file: Path, tmp_path: Path) -> None:
    """A learning rate that harms: the best is an early one, and was another one before."""
    out = tmp_path / "m"
    run(text_file, out, lr=0.3, milestones=2, evaluation_interval=1, threads=1)
    for one in listed(out)[:-1]:
        state = load_training(one.path)[1]["progress"]
        with pytest.raises(Interrupted), training(
            out=out, resume=True, at=one.step, threads=1, on_event=stop_at(one.step + 1)
        ) as trainer:
            trainer.begin()
            best = load_model(out / "best")[2]
            want = load_model(one.path / "best")[2]
            assert all((best[n] == want[n]).all() for n in want)
            assert trainer.progress.best_step == state["best_step"] <= one.step
            trainer.close()
            raise Interrupted


def test_at_names_a_step_that_is_kept(model: Path) -> None:
    says = "at is 7, but .* keeps those of other steps; choose 6, 12, 16, 18, 20"
    with pytest.raises(UsageError, match=says):
        crystalline.train(out=model, resume=True, at=7)
    with pytest.raises(UsageError, match="use it with resume"):
        crystalline.train(out=model, at=6)
    with pytest.raises(UsageError, match="finished at step 20"):
        crystalline.train(out=model, resume=True, at=20)
    shutil.rmtree(model / "checkpoints")
    with pytest.raises(UsageError, match="keeps none; train with keep or milestones"):
        crystalline.train(out=model, resume=True, at=6)


def test_the_command_and_what_it_shows(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    invoke("train", text_file, "--out", out, "--quiet", *SMALL, "--steps", 9, "--save-steps", 2,
           "--save-minutes", 60, "--keep", 2, "--milestones", 4, "--evaluation-interval", 3,
           "--patience", 5, "--min-delta", 0.001)  # fmt: skip
    assert [(one.step, one.why) for one in listed(out)] == [
        (4, "milestone"), (8, "milestone"), (9, "last")
    ]
    said = invoke("info", out)
    assert "milestones  step 4, 8\n" in said and "kept        step 9\n" in said
    lines = invoke("train", "--resume", "--out", out, "--at", 4, "--layers", 2, "--lr", 0.001,
                   "--json").splitlines()  # fmt: skip
    events = [json.loads(line) for line in lines]
    assert [e["step"] for e in events if e["event"] == "step"] == [5, 6, 7, 8, 9]
    said = invoke("info", out)
    assert "before      layers were added: step 4\n" in said and "2 layers" in said
    assert "learning_rate 0.001 from step 5 on" in said and "layers 2 from step 5 on" in said


def test_without_links_they_are_copies(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*args: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    run(text_file, tmp_path / "m", save_steps=10, keep=2, threads=1)
    assert steps_of(tmp_path / "m") == [10, 20]
    for one in listed(tmp_path / "m"):
        whole(one.path, one.step)
        assert (one.path / "model.safetensors").stat().st_nlink == 1


@pytest.mark.parametrize("at", range(12))
def test_the_old_ones_stay_until_the_new_one_is_whole(
    at: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full at any of the links: told, and training goes on."""
    real, count = os.link, [0]

    def link(*args: Any) -> None:
        count[0] += 1
        if count[0] > at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(os, "link", link)
    events: list[dict[str, Any]] = []
    crystalline.train(out=model, resume=True, steps=21, threads=1, on_event=events.append)
    said = [e["message"] for e in events if e["event"] == "warning"]
    assert said and "of step 20 cannot be kept there (No space left" in said[0]
    assert load_training(model)[1]["progress"]["step"] == 21
    assert steps_of(model) == KEPT
    for one in listed(model):
        whole(one.path, one.step)


def test_what_a_crash_left_is_swept_and_never_listed(model: Path) -> None:
    folder = model / "checkpoints"
    os.rename(folder / "step-00000016", folder / ".step-00000016.old")
    (folder / ".step-00000022.new").mkdir()
    (folder / "step-00000099").mkdir()  # somebody's own
    assert steps_of(model) == [6, 12, 18, 20]
    crystalline.train(out=model, resume=True, steps=21, keep=1, threads=1)
    assert steps_of(model) == [6, 12, 18, 21]
    assert sorted(os.listdir(folder))[0] == "step-00000006"


def test_minutes_and_steps_displace_the_pace(text_file: Path, tmp_path: Path) -> None:
    def saved(out: str, **options: Any) -> list[int]:
        events = run(text_file, tmp_path / out, threads=1, **options)
        return [e["step"] for e in events if e["event"] == "checkpoint"]

    assert saved("a", save_minutes=1e-9) == list(range(STEPS + 1))
    assert saved("b", save_steps=9) == [0, 9, 18, 20]
    assert saved("c", save_steps=9, save_minutes=1000.0) == [0, 9, 18, 20]
    assert saved("d") == [0, 20]


def test_the_pace_does_not_save_beside_steps(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crystalline.training.pacing.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("crystalline.training.pacing.SAVE_SHARE", 1e9)
    events = run(text_file, tmp_path / "m", save_steps=15, threads=1)
    assert [e["step"] for e in events if e["event"] == "checkpoint"] == [0, 15, 20]
    events = run(text_file, tmp_path / "n", threads=1)
    assert len([e for e in events if e["event"] == "checkpoint"]) == STEPS + 1


def test_a_signal_saves_and_the_training_goes_on(text_file: Path, tmp_path: Path) -> None:
    saved: list[int] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        if event["event"] == "checkpoint" and event["step"] > 0 and not saved:
            saved.append(event["step"])
            assert load_training(tmp_path / "m")[1]["progress"]["step"] == event["step"]
        if event["event"] == "step" and saved and event["step"] == saved[0] + 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Interrupted) as ended:
        options = {**TINY, "steps": 1_000_000, "threads": 1}
        crystalline.train(text_file, tmp_path / "m", on_event=on_event, **options)
    assert saved[0] >= 3 and ended.value.exit_code == 128 + signal.SIGTERM
    assert load_training(tmp_path / "m")[1]["progress"]["step"] >= saved[0] + 2
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_plan_of_saving_is_kept_and_may_change(model: Path) -> None:
    crystalline.train(out=model, resume=True, steps=24, threads=1)
    assert steps_of(model) == [6, 12, 18, 20, 22, 24]
    crystalline.train(out=model, resume=True, steps=30, threads=1, keep=1, save_steps=5)
    assert steps_of(model) == [6, 12, 18, 24, 30]
    with training(out=model, resume=True, steps=31, threads=1) as trainer:
        assert isinstance(trainer, Trainer)
        assert (trainer.saving.plan.keep, trainer.saving.plan.save_steps) == (1, 5)
