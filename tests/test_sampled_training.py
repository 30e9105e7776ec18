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
from crystalline.checkpoints.checkpoint import load_model, load_training
from crystalline.config import ModelConfig
from crystalline.decoder.candidates import Candidates
from crystalline.decoder.decoder import Decoder, Parameters, initialise
from crystalline.decoder.sparse import MOST_PUT_OFF, SparseTable, touched_rows, vocabulary_weights
from crystalline.errors import ConfigError, Interrupted, UsageError
from crystalline.forecast import choice
from crystalline.optimizers.adamw import AdamW, AdamWConfig, power
from crystalline.training import training
from crystalline.training.trainer import Trainer

SAMPLED = {"loss": "sampled", "samples": 40}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sampled")
    text = folder / "prose.txt"
    text.write_text(prose(4000))
    events = run(text, folder / "model", **SAMPLED)
    return {"text": text, "hash": fingerprint(folder / "model"), "events": events}


# --- The same bits.


# The portable kernels are slow, and threads cut their work as they cut that of the others.
GRID = [("portable", 1), ("portable", 5)]
GRID += [(isa, threads) for isa in ("avx2", "avx512") for threads in (1, 2, 3, 5, 12)]


@pytest.mark.parametrize(("isa", "threads"), GRID)
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
    b = Decoder(weights, team, 5, 8, sampled, log_expected=candidates.log_expected)
    for i, (ids, targets) in enumerate(pairs):
        want = a.gradient(ids, targets, 0.1, i > 0)
        assert b.gradient(ids, targets, 0.1, i > 0, drawn[i]) == pytest.approx(want, rel=1e-6)
    for name, dw in sampled.named.items():
        want = full.named[name]
        touched = np.isfinite(dw).all(-1) if name in vocabulary_weights(c) else np.isfinite(dw)
        assert not want[~touched].any(), name
        assert np.max(abs(dw[touched] - want[touched])) < 1e-5 * np.max(abs(want)), name


def test_bf16_operands_with_the_sampled_loss() -> None:
    """All classes sampled: the gradients of the full loss with bf16 operands, its own roundings."""
    c, team = ModelConfig(300, 64, 2, 2, 2, 96, 16), Team(2)
    if not team.has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    weights, full, sampled = (Parameters(c) for _ in range(3))
    initialise(weights, 0)
    candidates = Candidates(np.ones(300, np.int64), 300, 0, team)
    ids, targets = np.random.default_rng(0).integers(0, 300, (2, 13, 16), np.int32)
    a = Decoder(weights, team, 13, 16, full, "bf16")
    b = Decoder(weights, team, 13, 16, sampled, "bf16", candidates.log_expected)
    want = a.gradient(ids, targets, 1 / 208, False)
    assert b.gradient(ids, targets, 1 / 208, False, candidates.draw(0)) == pytest.approx(want, 1e-3)
    assert np.max(abs(sampled.flat - full.flat)) < 0.01 * np.max(abs(full.flat))
    assert b.loss(ids, targets) == pytest.approx(want, 1e-3)


# --- Rows that are touched, and the others.


HYPER = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


def numbers(t: int, lr: float) -> dict[str, float]:
    """Those of update t, counted from 1."""
    return {
        "grad_scale": 1.0, "decay": 1 - lr * 0.1, "step_size": lr / (1 - power(0.9, t)),
        "root_bias2": (1 - power(0.95, t)) ** 0.5,
    }  # fmt: skip


def dense_steps(
    p: Array, rows_of: list[Array], grads: Array, lr: float
) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """Dense AdamW where all rows but a step's have a gradient of zero: by the kernel in float32, by
    the reference in float64, and the rows of p as each step would read them."""
    team, seen = Team(1), []
    got = {"p": p.copy(), "m": np.zeros_like(p), "v": np.zeros_like(p)}
    exact = [a.astype(np.float64) for a in got.values()]
    for t, (rows, g) in enumerate(zip(rows_of, grads, strict=True), start=1):
        gradient = np.zeros_like(p)
        gradient[rows] = g[rows]
        seen.append(got["p"][rows].copy())
        flat = [a.reshape(-1) for a in (*got.values(), gradient)]
        team.adamw(*flat, **HYPER, **numbers(t, lr))
        named = {"lr": lr, "weight_decay": 0.1, **HYPER}
        exact = list(ref.adamw(exact[0], gradient, exact[1], exact[2], t, **named))
    return got, dict(zip("pmv", exact, strict=True)), np.concatenate(seen)


def sparse_steps(
    p: Array, rows_of: list[Array], grads: Array, lr: float, threads: int, settle: bool = False
) -> tuple[SparseTable, Array]:
    """The same by SparseTable, and the rows of p as each step read them."""
    seen = []
    table = SparseTable(p.copy(), np.zeros_like(p), np.zeros_like(p), Team(threads), **HYPER)
    for t, (rows, g) in enumerate(zip(rows_of, grads, strict=True), start=1):
        gradient = np.full_like(p, np.nan)
        table.begin(rows, gradient)
        assert not gradient[rows].any()
        seen.append(table.p[rows].copy())
        gradient[rows] = g[rows]
        table.update(gradient, **numbers(t, lr))
        if settle:
            table.settle()
    table.settle()
    return table, np.concatenate(seen)


def random_rows(V: int, steps: int) -> list[Array]:
    rng = np.random.default_rng(V)
    return [np.flatnonzero(rng.random(V) < 0.3).astype(np.int32) for _ in range(steps)]


@pytest.mark.parametrize(("V", "D"), [(1, 1), (13, 5), (40, 33), (300, 16)])
def test_sparse_adamw_has_the_bits_of_dense_adamw(V: int, D: int) -> None:
    rows_of, grads, p = random_rows(V, 30), draw(30, V, D), draw(V, D, seed=1)
    want, exact, want_seen = dense_steps(p, rows_of, grads, 0.05)
    for threads, settle in ((1, False), (2, False), (3, True)):
        table, seen = sparse_steps(p, rows_of, grads, 0.05, threads, settle)
        for name, a in want.items():
            assert np.array_equal(getattr(table, name), a), name
            assert np.max(abs(a - exact[name])) < 1e-5, name
        assert np.array_equal(seen, want_seen)


def test_more_steps_than_are_put_off() -> None:
    """Also long enough for moments to vanish."""
    V, D, steps = 3, 2, MOST_PUT_OFF + 5
    rows_of = [np.array([t % 2], np.int32) if t < 9 else np.array([1], np.int32)
               for t in range(steps)]  # fmt: skip
    grads, p = draw(steps, V, D), draw(V, D)
    want, _, seen = dense_steps(p, rows_of, grads, 0.001)
    table, also_seen = sparse_steps(p, rows_of, grads, 0.001, 1)
    assert not table.m[0].any() and table.m[1].all()
    for name, a in want.items():
        assert np.array_equal(getattr(table, name), a), name
    assert np.array_equal(seen, also_seen)


@pytest.mark.parametrize("tied", [True, False])
def test_training_has_the_bits_of_dense_updates(
    tied: bool, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sampled gradients, but every row of every weight updated at every step."""
    if not tied:
        choose = choice.choose_model
        untied = lambda *said: replace(choose(*said), tied=False)  # noqa: E731
        monkeypatch.setattr(choice, "choose_model", untied)
    # The norm is added up in another order, so nothing may be scaled by it.
    monkeypatch.setattr(AdamW, "_squared_norm", lambda self, gradients: 0.25)
    run(undisturbed["text"], tmp_path / "sparse", accumulate=2, **SAMPLED)

    def begin(self: AdamW, gradients: Parameters, touched: dict[str, Array]) -> None:
        for name in touched:
            gradients.named[name][...] = 0.0

    monkeypatch.setattr(training, "vocabulary_weights", lambda config: ())
    monkeypatch.setattr(AdamW, "begin", begin)
    run(undisturbed["text"], tmp_path / "dense", accumulate=2, **SAMPLED)
    assert fingerprint(tmp_path / "sparse") == fingerprint(tmp_path / "dense")


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
        decoder = Decoder(weights, team, B, T, gradients, log_expected=candidates.log_expected)
        ids = np.full((B, T), 7, np.int32)
        sizes = (c.dim, c.heads, c.kv_heads, c.hidden, c.vocab_size, samples)
        forecast = team.work_floats(decoder.space.groups, T, *sizes)
        for place in range(2):
            decoder.gradient(ids, ids, 1.0, False, candidates.draw(place))
            decoder.loss(ids, ids)
            assert team.work_bytes == 4 * forecast
