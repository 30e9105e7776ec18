"""Formats of training_state.json: older ones go on to the same bits, newer ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import invoke
from conftest import TINY, prose
from test_training import fingerprint, run, stop_at

import crystalline
from crystalline.__main__ import main
from crystalline.checkpoints.checkpoint import load_model, load_training, save_model
from crystalline.checkpoints.info import describe
from crystalline.checkpoints.state_format import FORMAT, migrated
from crystalline.errors import CheckpointError, Interrupted

STEPS = 12
# What a training wrote before it had a number for the place in the text, commands or bits per byte.
OLDEST = {"sequences", "best_bits_per_byte", "evaluation_interval", "mark", "stale", "ended"}
# And what format 1 had at its end.
LATER = {"mark", "stale", "ended"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("format")
    text = folder / "prose.txt"
    text.write_text(prose(4000))
    run(text, folder / "whole", steps=STEPS, threads=1)
    with pytest.raises(Interrupted):
        said = {**TINY, "steps": STEPS, "threads": 1}
        crystalline.train(text, folder / "m", on_event=stop_at(5), **said)
    return {"model": folder / "m", "hash": fingerprint(folder / "whole")}


def with_state(made: dict[str, Any], out: Path, change: Any) -> Path:
    """The stopped training with its state written as somebody else would have."""
    shutil.copytree(made["model"], out)
    config, tokenizer, weights = load_model(out)
    moments, state = load_training(out)
    change(state)
    save_model(out, config, tokenizer, weights, optimizer=moments, state=state)
    return out


def aged(state: dict[str, Any], missing: set[str], top: tuple[str, ...]) -> None:
    state["format"] = 1
    for name in missing:
        del state["progress"][name]
    for name in ("patience", "min_delta"):
        del state["recipe"][name]
    for name in top:
        del state[name]


def test_the_number_is_written(made: dict[str, Any]) -> None:
    assert load_training(made["model"])[1]["format"] == FORMAT


@pytest.mark.parametrize(
    ("missing", "top"),
    [(LATER, ("model_step",)), (OLDEST, ("model_step", "commands", "options"))],
    ids=["last of format 1", "first of format 1"],
)
def test_an_older_one_goes_on_to_the_same_bits(
    missing: set[str], top: tuple[str, ...], made: dict[str, Any], tmp_path: Path
) -> None:
    out = with_state(made, tmp_path / "m", lambda state: aged(state, missing, top))
    assert describe(out)["training"]["model_step"] == 5
    crystalline.train(out=out, resume=True, threads=2)
    assert fingerprint(out) == made["hash"]
    assert load_training(out)[1]["format"] == FORMAT


@pytest.mark.parametrize("number", [FORMAT + 1, 999])
def test_a_newer_one_is_refused_and_left_alone(
    number: int, made: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = with_state(made, tmp_path / "m", lambda state: state.update(format=number, new=[1]))
    before = fingerprint(out)
    for args in (["train", "--resume", "--out", str(out), "--quiet"], ["info", str(out)]):
        assert main(args) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and f"format is {number}, written by a newer" in err
        assert f"this one reads up to {FORMAT}" in err
    assert fingerprint(out) == before
    assert invoke("generate", out, "--max-tokens", 3)  # the model itself has no such number


@pytest.mark.parametrize("number", [0, -1, "2", None, 1.0, True])
def test_what_is_no_number_is_refused(number: object) -> None:
    with pytest.raises(CheckpointError, match="must be a number from 1 on"):
        migrated({"format": number}, "m/training_state.json")


def test_what_lacks_its_parts_is_one_line() -> None:
    for state in ({}, {"progress": {}, "recipe": {}}, {"progress": [], "recipe": 3}):
        with pytest.raises(CheckpointError, match=r"m/x: .* does not fit format 1; restore") as no:
            migrated(json.loads(json.dumps(state)), "m/x")
        assert "\n" not in str(no.value)
