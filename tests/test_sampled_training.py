"""Training with the sampled loss: bits, resuming at every step, rows caught up, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
from case import Array, draw
from conftest import TINY, prose
from test_training import STEPS, fingerprint, run, stop_at
from tolerance import assert_close

import crystalline
from crystalline._native import Team, available_isas
from crystalline.candidates import Candidates
from crystalline.checkpoint import load_model, load_training
from crystalline.config import ModelConfig
from crystalline.errors import ConfigError, Interrupted, UsageError
from crystalline.model import Decoder, Parameters, initialise
from crystalline.optim import AdamW, AdamWConfig, power
from crystalline.sparse import MOST_PUT_OFF, SparseTable, touched_rows, vocabulary_weights
from crystalline.trainer import Trainer

SAMPLED = {"loss": "sampled", "samples": 40}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sampled")
    text = folder / "prose.txt"
    text.write_text(prose(4000))
    events = run(text, folder / "model", **SAMPLED)
    return {"text": text, "hash": fingerprint(folder / "model"), "events": events}


# --- The same bits.


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("threads", [1, 2, 3, 5, 12])
def test_same_bits_on_any_threads_and_instruction_set(
    isa: str, threads: int, undisturbed: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}")
    monkeypatch.setenv("CRYSTALLINE_ISA", isa)
    run(undisturbed["text"], tmp_path / "m", threads=threads, **SAMPLED)
    assert fingerprint(tmp_path / "m") == undisturbed["hash"]


@pytest.mark.parametrize("step", range(1, STEPS))
def test_resuming_at_any_step_gives_the_same_bits(
    step: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    out, options = tmp_path / "m", {**TINY, **SAMPLED, "steps": STEPS}
    with pytest.raises(Interrupted, match=f"after step {step} of {STEPS}"):
        crystalline.train(undisturbed["text"], out, on_event=stop_at(step), **options)
    crystalline.train(out=out, resume=True, threads=1 + step % 3)
    assert fingerprint(out) == undisturbed["hash"]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_settling_at_any_time_changes_no_later_bit(
    accumulate: int, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SAMPLED, "accumulate": accumulate, "batch_size": 5}
    run(undisturbed["text"], tmp_path / "a", **options)
    step = Trainer.step

    def settled(self: Trainer) -> Any:
        self.optimizer.settle()
        event = step(self)
        self.optimizer.settle()
        return event

    monkeypatch.setattr(Trainer, "step", settled)
    run(undisturbed["text"], tmp_path / "b", **options)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


# --- What it learns.


def test_it_learns_and_validates_over_the_whole_vocabulary(text_file: Path, tmp_path: Path) -> None:
    losses = {}
    for name, options in {"full": {}, "sampled": {"loss": "sampled", "samples": 100}}.items():
        events = run(text_file, tmp_path / name, steps=120, lr=3e-3, **options)
        losses[name] = [e for e in events if e["event"] == "validation"][-1]["loss"]
    assert losses["sampled"] < 1.1 * losses["full"] < 4.5


def test_all_samples_train_as_the_full_loss_does(text_file: Path, tmp_path: Path) -> None:
    V = TINY["vocab_size"]
    full = run(text_file, tmp_path / "f", steps=5)
    sampled = run(text_file, tmp_path / "s", steps=5, loss="sampled", samples=V)
    for a, b in zip(full, sampled, strict=True):
        if a["event"] in ("step", "validation"):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
    a, b = (load_model(tmp_path / name)[2] for name in "fs")
    for name, want in a.items():
        assert np.max(abs(b[name] - want)) < 1e-3 * np.max(abs(want)), name


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_a_step_are_those_of_its_rows(tied: bool) -> None:
    """Through the whole decoder: with every class sampled, the gradients of the full loss."""
    c = ModelConfig(30, 16, 2, 2, 1, 24, 8, tied=tied)
    team, rng = Team(2), np.random.default_rng(0)
    weights, full, sampled = (Parameters(c) for _ in range(3))
    initialise(weights, 0)
    candidates = Candidates(np.arange(30), 30, 0, team)
    optimizer = AdamW(weights, team, AdamWConfig(), vocabulary_weights(c))
    sampled.flat[...] = np.nan  # of an earlier step
    batches = [rng.integers(0, 9, (2, 5, 8), np.int32) for _ in range(2)]
    pairs, drawn = [(b[0], b[1]) for b in batches], [candidates.draw(i) for i in range(2)]
    optimizer.begin(sampled, touched_rows(c, pairs, drawn))
    a = Decoder(weights, team, 5, 8, full)
    b = Decoder(weights, team, 5, 8, sampled, candidates.log_expected)
    for i, (ids, targets) in enumerate(pairs):
        want = a.gradient(ids, targets, 0.1, i > 0)
        assert b.gradient(ids, targets, 0.1, i > 0, drawn[i]) == pytest.approx(want, rel=1e-6)
    for name, dw in sampled.named.items():
        want = full.named[name]
        touched = np.isfinite(dw).all(-1) if name in vocabulary_weights(c) else np.isfinite(dw)
        assert not want[~touched].any(), name
        assert np.max(abs(dw[touched] - want[touched])) < 1e-5 * np.max(abs(want)), name


# --- Rows that are touched, and the others.


def dense_steps(p: Array, rows_of: list[Array], grads: Array, lr: float) -> tuple[Array, ...]:
    """In float64: AdamW where a step touches, decay everywhere else; moments rest there."""
    s, m, v = AdamWConfig(), np.zeros(p.shape), np.zeros(p.shape)
    p = p.astype(np.float64)
    named = {"lr": lr, "beta1": s.beta1, "beta2": s.beta2, "eps": s.eps}
    for t, (rows, g) in enumerate(zip(rows_of, grads, strict=True), start=1):
        others = np.setdiff1d(np.arange(len(p)), rows)
        p[rows], m[rows], v[rows] = ref.adamw(
            p[rows], g[rows], m[rows], v[rows], t, weight_decay=s.weight_decay, **named
        )
        p[others] *= 1 - lr * s.weight_decay
    return p, m, v


def sparse_steps(
    p: Array, rows_of: list[Array], grads: Array, lr: float, threads: int, settle: bool = False
) -> tuple[SparseTable, Array]:
    """The same by SparseTable, and p as it was read by each step."""
    s, seen, team = AdamWConfig(), [], Team(threads)
    table = SparseTable(p.copy(), np.zeros_like(p), np.zeros_like(p), team)
    for t, (rows, g) in enumerate(zip(rows_of, grads, strict=True), start=1):
        gradient = np.full_like(p, np.nan)
        table.begin(rows, gradient)
        assert not gradient[rows].any()
        seen.append(table.p[rows].copy())
        gradient[rows] = g[rows]
        table.update(gradient, 1 - lr * s.weight_decay, {
            "grad_scale": 1.0, "beta1": s.beta1, "beta2": s.beta2, "eps": s.eps,
            "step_size": lr / (1 - power(s.beta1, t)),
            "root_bias2": (1 - power(s.beta2, t)) ** 0.5,
        })  # fmt: skip
        if settle:
            table.settle()
    table.settle()
    return table, np.concatenate(seen)


def random_rows(V: int, steps: int) -> list[Array]:
    rng = np.random.default_rng(V)
    return [np.flatnonzero(rng.random(V) < 0.3).astype(np.int32) for _ in range(steps)]


@pytest.mark.parametrize(("V", "D"), [(1, 1), (13, 5), (40, 33), (300, 16)])
def test_sparse_adamw_is_dense_adamw_with_moments_at_rest(V: int, D: int) -> None:
    rows_of, grads, p = random_rows(V, 30), draw(30, V, D), draw(V, D, seed=1)
    table, seen = sparse_steps(p, rows_of, grads, 0.05, 2)
    want = dense_steps(p, rows_of, grads, 0.05)
    for got, exact in zip((table.p, table.m, table.v), want, strict=True):
        assert np.max(abs(got - exact), initial=0) < 1e-5
    for threads, settle in ((1, False), (3, True)):
        other, also_seen = sparse_steps(p, rows_of, grads, 0.05, threads, settle)
        for a in "pmv":
            assert np.array_equal(getattr(other, a), getattr(table, a))
        assert np.array_equal(also_seen, seen)


def test_more_steps_than_are_put_off() -> None:
    V, D, steps = 3, 2, MOST_PUT_OFF + 5
    first = [np.array([1], np.int32)] * steps
    p, want = draw(V, D), draw(V, D)
    table, _ = sparse_steps(p, first, np.zeros((steps, V, D), np.float32), 0.001, 1)
    for _ in range(steps):
        want = want * np.float32(1 - 0.001 * 0.1)
    assert np.array_equal(table.p, want)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    c = ModelConfig(30, 16, 1, 2, 1, 24, 8)
    team, weights, gradients = Team(1), Parameters(c), Parameters(c)
    initialise(weights, 0)
    optimizer = AdamW(weights, team, AdamWConfig(), vocabulary_weights(c))
    before = weights.flat.copy()
    optimizer.begin(gradients, {"model.embed_tokens.weight": np.array([3], np.int32)})
    gradients.named["model.embed_tokens.weight"][3, 0] = np.inf
    assert not np.isfinite(optimizer.step(gradients, 0.1))
    optimizer.settle()
    assert optimizer.t == 0 and np.array_equal(weights.flat, before)


def test_the_norm_is_that_of_rows_and_all_other_parameters() -> None:
    c = ModelConfig(30, 16, 1, 2, 1, 24, 8, tied=False)
    team, weights, gradients = Team(1), Parameters(c), Parameters(c)
    gradients.flat[...] = draw(gradients.flat.size)
    optimizer = AdamW(weights, team, replace(AdamWConfig(), clip=1e9), vocabulary_weights(c))
    embedding, head = vocabulary_weights(c)
    touched = {embedding: np.array([3, 7], np.int32), head: np.array([0, 29], np.int32)}
    optimizer.begin(gradients, touched)
    for name, rows in touched.items():
        gradients.named[name][rows] = draw(2, 16, seed=1)
    dense = gradients.flat.copy()
    for name, rows in touched.items():
        begin, end = weights.spans[name]
        untouched = np.setdiff1d(np.arange(30), rows)
        dense[begin:end].reshape(30, 16)[untouched] = 0
        gradients.named[name][untouched] = np.nan
    squared = np.float64(optimizer.step(gradients, 0.0)) ** 2
    assert_close("squared_norm", squared, np.array(ref.squared_norm(dense)), dense)
    assert optimizer.squares.sum() == pytest.approx(squared)


# --- What the user says and sees.


def test_the_plan_says_so_and_resuming_keeps_it(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    plan = next(e for e in undisturbed["events"] if e["event"] == "plan")
    assert (plan["loss"], plan["samples"]) == ("sampled", 40)
    out = tmp_path / "m"
    run(undisturbed["text"], out, **{**SAMPLED, "steps": 2})
    assert load_training(out)[1]["recipe"]["samples"] == 40
    for change in ({"loss": "full"}, {"loss": "sampled", "samples": 41}):
        with pytest.raises(UsageError, match=r"(loss|samples) cannot change when resuming"):
            crystalline.train(out=out, resume=True, steps=3, **change)
    events: list[dict[str, Any]] = []
    crystalline.train(out=out, resume=True, steps=3, on_event=events.append, **SAMPLED)
    assert next(e for e in events if e["event"] == "plan")["samples"] == 40


def test_512_samples_or_the_whole_vocabulary_are_the_default(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    events = run(undisturbed["text"], tmp_path / "m", steps=1, loss="sampled")
    assert next(e for e in events if e["event"] == "plan")["samples"] == TINY["vocab_size"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "sampled", "samples": 301}, "samples is 301, but the vocabulary has 300 tokens"),
        ({"samples": 40}, "samples is 40, but loss is full; choose loss sampled"),
    ],
)
def test_samples_that_do_not_fit_are_refused_before_anything_is_written(
    options: dict[str, Any], words: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(undisturbed["text"], tmp_path / "m", **options)
    assert not (tmp_path / "m" / "data").exists()


@pytest.mark.parametrize("samples", [1, 40, 300])
def test_a_step_allocates_what_was_forecast(samples: int) -> None:
    for B, T in ((1, 8), (13, 24), (48, 64)):
        c = ModelConfig(300, 40, 2, 4, 2, 52, T)
        team, weights, gradients = Team(2), Parameters(c), Parameters(c)
        initialise(weights, 0)
        candidates = Candidates(np.ones(300, np.int64), samples, 0, team)
        decoder = Decoder(weights, team, B, T, gradients, candidates.log_expected)
        ids = np.full((B, T), 7, np.int32)
        sizes = (c.dim, c.heads, c.kv_heads, c.hidden, c.vocab_size, samples)
        forecast = team.work_floats(decoder.space.groups, T, *sizes)
        for place in range(2):
            decoder.gradient(ids, ids, 1.0, False, candidates.draw(place))
            decoder.loss(ids, ids)
            assert team.work_bytes == 4 * forecast
