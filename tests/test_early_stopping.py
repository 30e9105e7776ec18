"""Early stopping: when it ends a training, which weights are the model, and exact resuming."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, prose
from test_training import fingerprint, run, stop_at

import crystalline
from crystalline.checkpoints.checkpoint import load_model, load_training
from crystalline.checkpoints.info import describe, table
from crystalline.errors import Interrupted, UsageError
from crystalline.progress import finished

STEPS = 40
PATIENCE = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("early")
    text, held = folder / "prose.txt", folder / "held.txt"
    text.write_text(prose(400))
    held.write_text(prose(300, seed=9)[::-1])  # what is learnt soon harms
    said = {"lr": 0.03, "threads": 1, "evaluation_interval": 2, "val": [str(held)], "steps": STEPS}
    events = run(text, folder / "m", **said, patience=PATIENCE)
    whole = run(text, folder / "whole", **said)
    return {
        "text": text, "said": said, "model": folder / "m", "events": events,
        "whole": folder / "whole", "losses": [e["loss"] for e in of(whole, "validation")],
    }  # fmt: skip


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [e for e in events if e["event"] == kind]


def expected_end(losses: list[float], patience: int, min_delta: float) -> int | None:
    """The validation that ends it, from the figures alone."""
    mark, stale = float("inf"), 0
    for i, loss in enumerate(losses):
        mark, stale = (loss, 0) if loss < mark - min_delta else (mark, stale + 1)
        if stale == patience:
            return i
    return None


@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (4, 0.0), (15, 0.0), (2, 0.05)])
def test_it_ends_where_the_figures_say(
    patience: int, min_delta: float, made: dict[str, Any], tmp_path: Path
) -> None:
    said = {**made["said"], "patience": patience, "min_delta": min_delta}
    events = run(made["text"], tmp_path / "m", **said)
    end = expected_end(made["losses"], patience, min_delta)
    assert end is not None  # else this test shows nothing
    assert [e["loss"] for e in of(events, "validation")] == made["losses"][: end + 1]
    last = 2 * (end + 1)
    assert of(events, "step")[-1]["step"] == last and events[-1]["step"] == last
    assert events[-1]["ended"].startswith(f"stopped early at step {last} of {STEPS}: ")


def test_a_training_that_gets_better_goes_to_its_end(text_file: Path, tmp_path: Path) -> None:
    events = run(text_file, tmp_path / "m", patience=2, evaluation_interval=5, threads=1)
    assert events[-1]["step"] == 20 and events[-1]["ended"] is None
    assert len(of(events, "validation")) == 4


def test_the_best_is_the_model_and_the_last_is_kept_for_going_on(made: dict[str, Any]) -> None:
    out = made["model"]
    model, best = load_model(out)[2], load_model(out / "best")[2]
    state = load_training(out)[1]
    assert all((model[n] == best[n]).all() for n in best)
    done, p = made["events"][-1], state["progress"]
    assert p["best_step"] == done["best_step"] == done["model_step"] == state["model_step"]
    assert p["step"] > p["best_step"]
    said = describe(out)
    lines = [text for _, text in table(said)]
    assert said["training"]["model_step"] == p["best_step"] and p["ended"] in lines
    assert f"the model is that of step {p['best_step']}, the best" in lines
    rows = dict(finished({"path": "m", "seconds": 1.0} | done))
    assert rows[""] == p["ended"] and rows["best"].endswith(": this is the model")
    last = load_training(out)[0]
    assert any((last["last." + n] != best[n]).any() for n in best)
    # What is loaded and written with is the best.
    a, b = crystalline.load(out, threads=1), crystalline.load(out / "best", threads=1)
    assert a.logits([1, 2, 3]).tobytes() == b.logits([1, 2, 3]).tobytes()


def test_going_on_is_as_if_it_had_never_stopped(made: dict[str, Any], tmp_path: Path) -> None:
    out = Path(shutil.copytree(made["model"], tmp_path / "m"))
    ended = load_training(out)[1]["progress"]["ended"]
    with pytest.raises(UsageError, match="training is finished at step") as refused:
        crystalline.train(out=out, resume=True, patience=9)
    assert ended in str(refused.value)
    crystalline.train(out=out, resume=True, steps=STEPS, patience=0, threads=3)
    assert fingerprint(out) == fingerprint(made["whole"])
    assert load_training(out)[1]["progress"]["ended"] is None


def test_going_on_has_patience_anew(made: dict[str, Any], tmp_path: Path) -> None:
    out = Path(shutil.copytree(made["model"], tmp_path / "m"))
    at = load_training(out)[1]["progress"]["step"]
    crystalline.train(out=out, resume=True, steps=STEPS, threads=1)
    p = load_training(out)[1]["progress"]
    assert p["step"] == at + 2 * PATIENCE and p["stale"] == PATIENCE


@pytest.mark.parametrize("step", [1, 3, 6, 7, 8, 10, 11])
def test_stopped_and_resumed_it_ends_at_the_same_step(
    step: int, made: dict[str, Any], tmp_path: Path
) -> None:
    out, said = tmp_path / "m", {**TINY, **made["said"], "patience": PATIENCE}
    with pytest.raises(Interrupted):
        crystalline.train(made["text"], out, on_event=stop_at(step), **said)
    crystalline.train(out=out, resume=True, threads=2)
    assert fingerprint(out) == fingerprint(made["model"])
    mine, theirs = (load_training(m)[1]["progress"] for m in (out, made["model"]))
    assert {k: v for k, v in mine.items() if k != "seconds"} == {
        k: v for k, v in theirs.items() if k != "seconds"
    }


def test_patience_without_anything_to_validate_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(UsageError, match="patience is 3, but the text is too short to hold any"):
        run(tmp_path / "a", tmp_path / "m", patience=3)
    assert not (tmp_path / "m").exists()


def test_evenly_spread_validations_count_too(made: dict[str, Any], tmp_path: Path) -> None:
    said = made["said"] | {"evaluation_interval": 0, "patience": 2}
    events = run(made["text"], tmp_path / "m", **said)
    assert events[-1]["ended"] and events[-1]["step"] % 5 == 0 and events[-1]["step"] < STEPS


def test_with_minutes_it_ends_earlier(made: dict[str, Any], tmp_path: Path) -> None:
    said = {"minutes": 0.2, "steps": None, "patience": 1, "min_delta": 1000.0, "threads": 1}
    events = run(made["text"], tmp_path / "m", **said)
    assert len(of(events, "validation")) == 2 and events[-1]["ended"]
    assert events[-1]["step"] < of(events, "plan")[0]["steps"]


def test_with_patience_the_best_is_the_model_at_the_last_step_too(
    made: dict[str, Any], tmp_path: Path
) -> None:
    run(made["text"], tmp_path / "m", **made["said"], patience=1000)
    state = load_training(tmp_path / "m")[1]
    assert state["progress"]["ended"] is None and state["progress"]["step"] == STEPS
    model, best = load_model(tmp_path / "m")[2], load_model(tmp_path / "m" / "best")[2]
    assert state["model_step"] == state["progress"]["best_step"] < STEPS
    assert all((model[n] == best[n]).all() for n in best)


def test_where_the_best_was_removed_the_last_is_the_model(
    made: dict[str, Any], tmp_path: Path
) -> None:
    out, said = tmp_path / "m", {**TINY, **made["said"], "patience": PATIENCE}
    with pytest.raises(Interrupted):
        crystalline.train(made["text"], out, on_event=stop_at(9), **said)
    stopped = load_training(out)[1]["progress"]
    shutil.rmtree(out / "best")
    crystalline.train(out=out, resume=True, threads=1)
    state = load_training(out)[1]
    if state["progress"]["best_step"] == stopped["best_step"]:  # none came after
        assert state["model_step"] == state["progress"]["step"]
    assert state["progress"]["step"] == load_training(made["model"])[1]["progress"]["step"]
