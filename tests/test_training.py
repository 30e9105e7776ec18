"""Training as a whole: the same bits whatever runs it, exact resuming, odd data, honest reports."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, prose

import crystalline
from crystalline._native import available_isas
from crystalline.checkpoints.checkpoint import load_model, load_training
from crystalline.config import ModelConfig
from crystalline.errors import Interrupted, NumericsError, UsageError

STEPS = 20


def fingerprint(folder: Path) -> str:
    """Weights and moments, as one hash."""
    tensors = load_model(folder)[2] | load_training(folder)[0]
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    return digest.hexdigest()


def run(paths: Any, out: Path, **options: Any) -> list[dict[str, Any]]:
    """Trains the tiny model; returns the events."""
    events: list[dict[str, Any]] = []
    crystalline.train(paths, out, on_event=events.append, **{**TINY, "steps": STEPS, **options})
    return events


def stop_at(step: int) -> Any:
    """An on_event that notes a Ctrl-C when the step is done, before the next one can begin.

    A real signal is handled by the main thread a moment later; test_cli.py sends such.
    """

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            handler = signal.getsignal(signal.SIGINT)
            assert callable(handler)
            handler(signal.SIGINT, None)

    return on_event


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    text = folder / "prose.txt"
    text.write_text(prose(4000))
    run(text, folder / "model")
    return {"text": text, "hash": fingerprint(folder / "model"), "model": folder / "model"}


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("threads", [1, 2, 3, 5, 12])
def test_same_bits_on_any_threads_and_instruction_set(
    isa: str,
    threads: int,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}")
    monkeypatch.setenv("CRYSTALLINE_ISA", isa)
    run(undisturbed["text"], tmp_path / "m", threads=threads)
    assert fingerprint(tmp_path / "m") == undisturbed["hash"]


@pytest.mark.parametrize("step", range(1, STEPS))
def test_resuming_at_any_step_gives_the_same_bits(
    step: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "m"
    with pytest.raises(Interrupted, match=f"after step {step} of {STEPS}"):
        crystalline.train(undisturbed["text"], out, on_event=stop_at(step), **TINY, steps=STEPS)
    crystalline.train(out=out, resume=True, threads=1 + step % 3)
    assert fingerprint(out) == undisturbed["hash"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "step"] == list(range(1, STEPS + 1))


def test_another_seed_gives_other_weights(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    run(undisturbed["text"], tmp_path / "m", seed=1)
    assert fingerprint(tmp_path / "m") != undisturbed["hash"]


def test_loss_falls_and_validation_is_reported(text_file: Path, tmp_path: Path) -> None:
    events = run(text_file, tmp_path / "m", steps=120, lr=3e-3)
    losses = [e["loss"] for e in events if e["event"] == "step"]
    assert np.mean(losses[-10:]) < 0.7 * losses[0]
    last = [e for e in events if e["event"] == "validation"][-1]
    # Nats per token and bits per byte are one measurement in two units.
    model = crystalline.load(tmp_path / "m")
    text = text_file.read_text()
    tail = text[int(0.9 * len(text)) :]
    tokens = len(model.tokenizer.encode(tail))
    assert last["tokens"] == tokens + 1  # and the end of text
    bits = last["loss"] * last["tokens"] / np.log(2) / len(tail.encode())
    assert last["bits_per_byte"] == pytest.approx(bits)
    done = events[-1]
    assert done["event"] == "done" and done["validation"]["loss"] == last["loss"]


def test_validation_loss_is_the_models_own(text_file: Path, tmp_path: Path) -> None:
    """The reported figure against Model.logits, window by window."""
    events = run(text_file, tmp_path / "m")
    reported = [e for e in events if e["event"] == "validation"][-1]["loss"]
    model, text = crystalline.load(tmp_path / "m"), text_file.read_text()
    eot = model.tokenizer.eot
    ids = [eot, *model.tokenizer.encode(text[int(0.9 * len(text)) :]), eot]
    total = 0.0
    for a in range(0, len(ids) - 1, TINY["seq_len"]):
        b = min(a + TINY["seq_len"], len(ids) - 1)
        z = model.logits(ids[a:b]).astype(np.float64)
        z -= z.max(1, keepdims=True)
        logp = z - np.log(np.exp(z).sum(1, keepdims=True))
        total -= logp[np.arange(b - a), ids[a + 1 : b + 1]].sum()
    assert reported == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_best_is_kept_beside_the_last(text_file: Path, tmp_path: Path) -> None:
    """With a learning rate that harms, the best model is not the last one."""
    events = run(text_file, tmp_path / "m", steps=60, lr=0.3)
    done = events[-1]
    best = load_model(tmp_path / "m" / "best")[2]
    last = load_model(tmp_path / "m")[2]
    assert done["best"] <= done["validation"]["loss"]
    assert (done["best_step"] == 60) == all((best[n] == last[n]).all() for n in last)


@pytest.mark.parametrize("text", ["a", "word", "One line of text, and no more.\n", "é\n" * 30])
def test_very_little_text_trains(text: str, tmp_path: Path) -> None:
    path = tmp_path / "little.txt"
    path.write_text(text)
    events = run(path, tmp_path / "m", steps=3)
    assert events[-1]["event"] == "done"
    assert isinstance(crystalline.load(tmp_path / "m").generate("x", max_tokens=5), str)


def test_a_folder_of_short_documents_with_accumulation(text_folder: Path, tmp_path: Path) -> None:
    events = run(text_folder, tmp_path / "m", accumulate=3, epochs=2, steps=None)
    steps = [e for e in events if e["event"] == "step"]
    plan = next(e for e in events if e["event"] == "plan")
    # Two epochs: every prediction of the training documents twice; the last step is padded.
    predictions = plan["train_tokens"] - 11 * 1  # one per document has no target
    assert sum(e["tokens"] for e in steps) == 2 * predictions


def test_accumulation_matches_one_large_batch(text_file: Path, tmp_path: Path) -> None:
    """Two micro-steps of 12 see the same sequences as one of 24: equal up to rounding."""
    sizes = TINY | {"batch_size": 12}
    a = run(text_file, tmp_path / "a", **sizes, accumulate=2, steps=3)
    b = run(text_file, tmp_path / "b", **sizes | {"batch_size": 24}, steps=3)
    losses = [[e["loss"] for e in events if e["event"] == "step"] for events in (a, b)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_val_paths_are_measured_and_not_trained(text_folder: Path, tmp_path: Path) -> None:
    held = text_folder / "08.txt"
    events = run(text_folder, tmp_path / "m", val=[str(held)])
    last = [e for e in events if e["event"] == "validation"][-1]
    model = crystalline.load(tmp_path / "m")
    assert last["tokens"] == len(model.tokenizer.encode(held.read_text())) + 1


def test_minutes_end_in_time_and_resume_follows_the_plan(text_file: Path, tmp_path: Path) -> None:
    """The number of steps is chosen for the time; its record decides what resuming does."""
    out = tmp_path / "m"
    events: list[dict[str, Any]] = []
    crystalline.train(text_file, out, minutes=0.05, on_event=events.append, **TINY)
    plan = next(e for e in events if e["event"] == "plan")
    assert plan["steps"] > 1
    state = load_training(out)[1]
    assert state["progress"]["step"] == state["course"]["steps"]
    with pytest.raises(UsageError, match="finished at step"):
        crystalline.train(out=out, resume=True)


def test_more_steps_can_be_given_when_resuming(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "m"
    run(undisturbed["text"], out, steps=5)
    events: list[dict[str, Any]] = []
    crystalline.train(out=out, resume=True, steps=8, on_event=events.append)
    assert [e["step"] for e in events if e["event"] == "step"] == [6, 7, 8]


def test_refusals_change_nothing(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    text, model = undisturbed["text"], undisturbed["model"]
    with pytest.raises(UsageError, match="holds a model already"):
        run(text, model)
    with pytest.raises(UsageError, match="dim cannot change"):
        crystalline.train(out=model, resume=True, dim=64)
    with pytest.raises(UsageError, match="holds no checkpoint"):
        crystalline.train(out=tmp_path / "none", resume=True)
    with pytest.raises(UsageError, match="no paths"):
        crystalline.train(out=tmp_path / "none")
    with pytest.raises(UsageError, match="MiB are available; choose what fits: dim "):
        run(text, tmp_path / "none", dim=65536, heads=512, layers=100)
    with pytest.raises(UsageError, match="steps is 3, but 20 are done"):
        crystalline.train(out=model, resume=True, steps=3)
    assert not (tmp_path / "none").exists()
    assert fingerprint(model) == undisturbed["hash"]


def test_not_a_number_stops_with_the_checkpoint_intact(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crystalline.decoder.decoder import Decoder

    real, calls = Decoder.gradient, []

    def poisoned(self: Decoder, *args: Any) -> float:
        calls.append(1)
        loss = real(self, *args)
        if len(calls) == 7:
            self.space.g["model.norm.weight"][3] = np.nan
        return loss

    monkeypatch.setattr(Decoder, "gradient", poisoned)
    with pytest.raises(NumericsError, match=r"at step 7; the checkpoint .* is intact; lower lr"):
        run(text_file, tmp_path / "m")
    assert all(np.isfinite(w).all() for w in load_model(tmp_path / "m")[2].values())


def test_a_step_allocates_no_work_space(text_file: Path, tmp_path: Path) -> None:
    """What check_memory forecasts is what the team holds from the first step to the last."""
    from crystalline.decoder.decoder import Decoder, Parameters, group_order, initialise
    from crystalline.team import make_team

    for B, T in ((1, 8), (13, 24), (48, 64)):
        c = ModelConfig(300, 40, 2, 4, 2, 52, T)
        team, weights, gradients = make_team(2), Parameters(c), Parameters(c)
        initialise(weights, 0)
        decoder = Decoder(weights, team, B, T, gradients)
        ids = np.full((B, T), 7, np.int32)
        forecast = team.work_floats(
            group_order(B)[1] * T, T, c.dim, c.heads, c.kv_heads, c.hidden, c.vocab_size
        )
        for _ in range(2):
            decoder.gradient(ids, ids, 1.0, False)
            assert team.work_bytes == 4 * forecast
