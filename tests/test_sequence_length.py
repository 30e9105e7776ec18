"""Epochs to the last prediction, and a sequence length that changes under way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, prose
from test_spheres_bits import commanded
from test_training import STEPS, fingerprint, run
from watch import nothing_leaks, watchdog

import crystalline
from crystalline.api import training
from crystalline.checkpoints.checkpoint import load_model, load_training, save_model
from crystalline.errors import UsageError
from crystalline.spheres.node_zero import NodeZero
from crystalline.team import make_team

LENGTHS = {4: 11, 9: 3, 12: 24, 13: 17}  # after a step: the length from there on


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lengths") / "prose.txt"
    path.write_text(prose(4000))
    return path


def predictions(events: list[dict[str, Any]], documents: int) -> int:
    """Of the text to learn from, once."""
    plan = next(event for event in events if event["event"] == "plan")
    return int(plan["train_tokens"]) - documents


def learnt(events: list[dict[str, Any]]) -> int:
    """Predictions of all steps."""
    return sum(event["tokens"] for event in events if event["event"] == "step")


@pytest.mark.parametrize(("size", "accumulate"), [(13, 1), (13, 3), (1000, 1), (7, 30)])
@pytest.mark.parametrize("epochs", [1, 2])
def test_epochs_train_every_prediction_so_often_and_no_more(
    size: int, accumulate: int, epochs: int, text_folder: Path, tmp_path: Path
) -> None:
    sizes = {"batch_size": size, "accumulate": accumulate, "epochs": epochs, "steps": None}
    events = run(text_folder, tmp_path / "m", **sizes)
    assert learnt(events) == epochs * predictions(events, 11)
    last = [event for event in events if event["event"] == "step"][-1]
    assert last["epoch"] == epochs and last["step"] == last["steps"]
    state = load_training(tmp_path / "m")[1]
    assert state["batches"]["epochs"] == epochs


def test_more_steps_after_the_epochs_go_on_without_a_gap(
    text_folder: Path, tmp_path: Path
) -> None:
    """The padded step took what was left and no more, so the next pass is whole."""
    out, sizes = tmp_path / "m", TINY | {"batch_size": 9}
    first: list[dict[str, Any]] = []
    crystalline.train(text_folder, out, on_event=first.append, **sizes, epochs=1)
    steps, rows = first[-1]["step"], load_training(out)[1]["progress"]["sequences"]
    assert 9 * (steps - 1) < rows < 9 * steps
    with training(out=out, resume=True, steps=3 * steps) as trainer:
        assert trainer.batches.end is None and trainer.batches.begin(1) == rows
        assert trainer.start().wait()
        assert trainer.progress.sequences == rows + 9 * 2 * steps


def test_the_last_step_of_epochs_is_the_same_with_and_without_its_padding(
    text: Path, tmp_path: Path
) -> None:
    """What a step of few sequences gives does not depend on the room it had."""
    runs = []
    for accumulate in (1, 5):
        said = TINY | {"accumulate": accumulate, "epochs": 0.05, "batch_size": 200}
        events: list[dict[str, Any]] = []
        crystalline.train(text, tmp_path / str(accumulate), on_event=events.append, **said)
        runs.append([event for event in events if event["event"] == "step"])
    assert len(runs[0]) == len(runs[1]) == 1
    assert runs[0][0]["tokens"] == runs[1][0]["tokens"]
    assert runs[0][0]["loss"] == runs[1][0]["loss"]


def changing(node: NodeZero, step: int) -> None:
    """Other lengths, and one batch size between."""
    if step in LENGTHS:
        node.set(seq_len=LENGTHS[step])
    if step == 10:
        node.set(batch_size=29)


def test_lengths_change_and_every_prediction_is_still_made_once(
    text: Path, tmp_path: Path
) -> None:
    events: list[dict[str, Any]] = []
    lengths = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "step":
            node = trainer.node
            assert node is not None
            lengths.append((event["step"], event["tokens"], trainer.batches.seq_len))
            changing(node, event["step"])

    with watchdog(120), training(
        text, tmp_path / "m", **TINY | {"epochs": 1.0, "on_event": on_event}
    ) as trainer:
        assert trainer.start().wait()
        size, last = trainer.recipe.batch_size, trainer.progress.course.steps
    assert (size, lengths[-1][0]) == (29, last)
    assert learnt(events) == predictions(events, 1)
    for step, tokens, T in lengths:
        assert tokens <= T * (13 if step <= 10 else 29)
    at = {step: T for step, _, T in lengths}
    assert [at[step] for step in (4, 5, 9, 10, 12, 13, 14)] == [24, 11, 11, 3, 3, 24, 17]


def test_a_replay_of_lengths_ends_in_the_same_bits(text: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    with watchdog(120), nothing_leaks():
        said = commanded(text, first, changing)
        assert next(c["values"][:2] for c in said if c["command"] == "SET") == [4.0, 11.0]
        assert commanded(text, again, replay=said, threads=3) == said
        plain = commanded(text, tmp_path / "plain")
    assert fingerprint(first) == fingerprint(again) != fingerprint(tmp_path / "plain")
    assert not plain
    a, b = (load_training(folder)[1] for folder in (first, again))
    assert a["batches"]["lengths"] == b["batches"]["lengths"]
    assert [T for _, T in a["batches"]["lengths"]] == [24, *LENGTHS.values()]


@pytest.mark.parametrize("stops", [(1, 5), (7, 11), (14,)])
def test_resuming_between_lengths_gives_the_same_bits(
    stops: tuple[int, ...], text: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def stopping(node: NodeZero, step: int) -> None:
        changing(node, step)
        if step in stops:
            node.stop()

    with watchdog(120), nothing_leaks():
        commanded(text, whole, changing)
        commanded(text, parts, stopping)
        for step in stops:
            assert load_training(parts)[1]["progress"]["step"] == step or step == stops[-1]
            commanded(None, parts, stopping)
    assert load_training(parts)[1]["progress"]["step"] == STEPS
    assert fingerprint(parts) == fingerprint(whole)


@pytest.mark.parametrize(
    "options", [{}, {"loss": "sampled", "samples": 40}, {"precision": "bf16"}]
)
def test_validation_stays_comparable(
    options: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    """At any training length it measures the same windows, to the same bits."""
    if options.get("precision") == "bf16" and not make_team(1).has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    with training(text, tmp_path / "m", **TINY, **options, steps=STEPS) as trainer:
        node = trainer.start()
        node.pause()
        before = trainer.validate()
        for T in (7, 1, 23, 24):
            node.set(seq_len=T)
            assert trainer.decoder.T == T == trainer.batches.seq_len
            assert trainer.measuring.T == 24
            now = trainer.validate()
            assert before is not None and now is not None
            assert now | {"seconds": 0} == before | {"seconds": 0}
        assert trainer.measuring is trainer.decoder
        node.stop()


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (25, "seq_len is 25, but this model was made for 24 tokens, and positions behind them "
             "have never been trained; choose 24 or fewer"),
        (0, "seq_len is 0, but must be a whole number from 1 to 24"),
        (-3, "whole number from 1 to 24"), (2.5, "whole number from 1 to 24"),
    ],
)  # fmt: skip
def test_a_length_that_cannot_be_is_refused(
    value: float, match: str, text: Path, tmp_path: Path
) -> None:
    with training(text, tmp_path / "m", **TINY, steps=STEPS) as trainer:
        node = trainer.start()
        node.pause()
        before = trainer.batches.state(), trainer.progress.course, trainer.decoder
        with pytest.raises(UsageError, match=match) as refused:
            node.set(seq_len=value)
        assert "\n" not in str(refused.value)
        assert before == (trainer.batches.state(), trainer.progress.course, trainer.decoder)
        assert not [c for c in trainer.commands if c["command"] == "SET"]
        node.stop()


def test_a_length_that_does_not_fit_into_memory_is_refused(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with training(text, tmp_path / "m", **TINY, steps=STEPS) as trainer:
        node = trainer.start()
        node.pause()
        node.set(seq_len=3)
        monkeypatch.setattr("crystalline.training.settings.available", lambda: 1000)
        with pytest.raises(UsageError, match=r"seq_len is 20, which needs .* MiB more, but 0 MiB"):
            node.set(seq_len=20)
        assert trainer.decoder.T == 3
        node.set(seq_len=2)  # which needs less
        node.stop()


def test_an_older_checkpoint_goes_on_padded_and_without_end(text: Path, tmp_path: Path) -> None:
    """One that knows nothing of passes: as it would have gone on then."""
    whole, old = tmp_path / "whole", tmp_path / "old"
    run(text, whole)
    commanded(text, old, lambda node, step: step == 7 and node.stop())
    config, tokenizer, weights = load_model(old)
    optimizer, state = load_training(old)
    del state["batches"], state["recipe"]["packing"]
    del state["options"]["packing"]
    save_model(old, config, tokenizer, weights, optimizer=optimizer, state=state)
    assert "packing" not in json.dumps(load_training(old)[1])
    crystalline.train(out=old, resume=True)
    assert fingerprint(old) == fingerprint(whole)
