"""Batches of packed sequences through the decoder: every window as if it stood in a row alone."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools

import numpy as np
import pytest
import reference as ref
import torch
from case import Array
from test_model import MODELS, planned
from test_reference import DECODERS, llama, random_weights
from tolerance import U, assert_close
from torch.nn import functional

from crystalline._native import ISAS, Team, available_isas
from crystalline.config import ModelConfig
from crystalline.decoder.decoder import Decoder, Parameters
from crystalline.optimizers import AdamW, AdamWConfig

THREADS = (1, 2, 3, 12)
SIZES = (1, 1, 2, 3, 7, 16, 40, 64, 65, 133)
PRECISIONS = ("fp32", "bf16")


def packed(c: ModelConfig, B: int, T: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """ids, targets and positions (B, T) of windows of any size.  Some windows are not learnt from
    to their end, some not at all, and the last rows may be none of any."""
    rng = np.random.default_rng([seed, B, T])
    ids, targets = rng.integers(0, c.vocab_size, (2, B, T), np.int32)
    positions = np.zeros((B, T), np.int32)
    for b in range(B):
        at = 0
        while at < T:
            n = min(int(rng.choice(SIZES)), T - at)
            positions[b, at : at + n] = np.arange(n)
            learnt = n if rng.random() < 0.7 else int(rng.integers(0, n + 1))
            targets[b, at + learnt : at + n] = -1
            at += n
    targets[rng.random((B, T)) < 0.1] = -1
    targets[0, 0] = 0
    return ids, targets, positions


def windows(positions: Array) -> list[tuple[int, slice]]:
    """The sequence of every window, and where it stands there."""
    B, T = positions.shape
    found = []
    for b in range(B):
        begins = [*np.flatnonzero(positions[b] == 0).tolist(), T]
        found += [(b, slice(*ends)) for ends in itertools.pairwise(begins)]
    return found


def shown(model: Decoder) -> tuple[Array, Array]:
    """Losses (B, T) and logits (B, T, V) of the last batch, in the order it was given."""
    s, c = model.space, model.config
    h = np.empty((model.B * model.T, c.dim), np.float32)
    r, norm = np.empty(len(h), np.float32), s.w["model.norm.weight"]
    s.team.rmsnorm(h, r, s.a["x"], norm, c.norm_eps)
    logits = np.empty((len(h), c.vocab_size), np.float32)
    s.team.matmul(logits, h, s.w["model.embed_tokens.weight" if c.tied else "lm_head.weight"])
    back = np.argsort(model.order)
    losses = s.a["losses"].reshape(model.B, model.T)
    return losses[back], logits.reshape(model.B, model.T, -1)[back]


def check(c: ModelConfig, B: int, T: int, precision: str, isas: tuple[str, ...]) -> None:
    """Losses and logits of every window up to its last target against those it has alone."""
    weights, gradients = Parameters(c), Parameters(c)
    weights.load(random_weights(c))
    ids, targets, positions = packed(c, B, T)
    got = []
    for isa in isas:
        for threads in THREADS:
            model = Decoder(weights, Team(threads, isa), B, T, gradients, precision)
            model.gradient(ids, targets, 1.0, False, positions=positions)
            got.append(shown(model))
            only = Decoder(weights, Team(threads, isa), B, T, None, precision)
            only.loss(ids, targets, positions)
            got.append(shown(only))
    for b, at in windows(positions):
        n, learnt = at.stop - at.start, targets[b, at] >= 0
        used = n - int(np.argmax(learnt[::-1])) if learnt.any() else 0
        alone = Decoder(weights, Team(1, isas[0]), 1, n, None, precision)
        alone.loss(ids[b : b + 1, at], targets[b : b + 1, at])
        losses, logits = (a[0] for a in shown(alone))
        end = at.start + used
        for packed_losses, packed_logits in got:
            assert packed_losses[b, at].tobytes() == losses.tobytes(), (b, at)
            assert packed_logits[b, at.start : end].tobytes() == logits[:used].tobytes(), (b, at)


@pytest.mark.parametrize(("B", "T"), [(1, 67), (5, 131), (14, 29)])
@pytest.mark.parametrize("name", ["tied", "grouped-query", "wide head"])
def test_a_window_has_the_bits_it_has_alone(name: str, B: int, T: int) -> None:
    """Wherever it stands, on any instruction set and threads, in training and in validation."""
    check(MODELS[name], B, T, "fp32", available_isas())


@pytest.mark.parametrize("name", ["tied", "grouped-query"])
def test_a_window_has_the_bits_it_has_alone_in_bf16(name: str) -> None:
    best = available_isas()[-1]
    if not Team(1, best).has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    c = MODELS[name]
    check(dataclasses.replace(c, hidden=c.hidden + c.hidden % 2), 5, 131, "bf16", (best,))


@pytest.mark.parametrize(("B", "T"), [(1, 67), (5, 131), (14, 29)])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_every_gradient_equal_the_reference_under_a_mask(
    name: str, B: int, T: int
) -> None:
    c = MODELS[name]
    w = {n: a.astype(np.float32) for n, a in random_weights(c).items()}
    model, _, gradients = planned(c, B, T, Team(2), w)
    ids, targets, positions = packed(c, B, T)
    count = int(np.sum(targets >= 0))
    loss = model.gradient(ids, targets, 1 / count, False, positions=positions) / count
    want = ref.decoder_backward(c, w, ids, targets, positions)
    assert loss == pytest.approx(ref.decoder_loss(c, w, ids, targets, positions), rel=16 * U)
    for n, d in want.items():
        # As in test_model: where few keys are seen, the gradients of scores cancel.
        scored = n.endswith(("q_proj.weight", "k_proj.weight"))
        values = want[n.replace("q_proj", "v_proj").replace("k_proj", "v_proj")]
        assert_close("decoder", gradients.named[n], d, np.append(d, values) if scored else d)


@pytest.mark.parametrize("name", DECODERS)
def test_loss_and_every_gradient_equal_transformers_under_a_mask(name: str) -> None:
    """Which is given the positions, and a mask of its own kind for each pair of rows."""
    B, T = 3, 67
    c = dataclasses.replace(MODELS[name], seq_len=T)
    w = {n: a.astype(np.float32) for n, a in random_weights(c).items()}
    theirs = llama(c, w, torch.float32, True)
    ids, targets, positions = packed(c, B, T)
    seen = torch.tensor(ref.same_window(positions) & np.tri(T, dtype=bool))
    mask = torch.zeros(B, 1, T, T).masked_fill(~seen, torch.finfo(torch.float32).min)
    logits = theirs(
        torch.tensor(ids.astype(np.int64)), attention_mask=mask,
        position_ids=torch.tensor(positions.astype(np.int64)),
    ).logits  # fmt: skip
    flat = torch.tensor(targets.astype(np.int64)).reshape(-1)
    want = functional.cross_entropy(logits.reshape(len(flat), -1), flat, ignore_index=-1)
    want.backward()
    model, _, gradients = planned(c, B, T, Team(2), w)
    count = int(np.sum(targets >= 0))
    loss = model.gradient(ids, targets, 1 / count, False, positions=positions) / count
    assert loss == pytest.approx(want.item(), rel=16 * U)
    for n, p in theirs.named_parameters():
        assert_close("decoder", gradients.named[n], p.grad.numpy(), p.grad.numpy())
    learnt = targets >= 0
    got = shown(model)[1][learnt]
    assert np.abs(got - logits.detach().numpy()[learnt]).max() < 1e-4


def test_the_gradient_is_the_derivative_of_the_loss() -> None:
    """Along itself: the central difference of the loss."""
    c, (B, T) = MODELS["grouped-query"], (5, 131)
    model, weights, gradients = planned(c, B, T, Team(2))
    batch = packed(c, B, T)
    model.gradient(*batch[:2], 1.0, False, positions=batch[2])
    g, start = gradients.flat.astype(np.float64), weights.flat.copy()
    slope = float(g @ g)
    step = 1e-2 / np.sqrt(slope)
    losses = []
    for sign in (1, -1):
        weights.flat[...] = start + sign * step * g
        losses.append(model.loss(*batch))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-3)


def trained_bits(c: ModelConfig, team: Team, precision: str) -> str:
    """Losses, gradients and weights of three steps: packed, not packed, packed."""
    B, T = 13, 67
    weights, gradients = Parameters(c), Parameters(c)
    weights.load(random_weights(c))
    model = Decoder(weights, team, B, T, gradients, precision)
    optimizer, digest = AdamW(weights, team, AdamWConfig()), hashlib.sha256()
    for step in range(3):
        ids, targets, positions = packed(c, B, T, step)
        given = None if step == 1 else positions
        loss = model.gradient(ids, targets, 1 / (B * T), False, positions=given)
        norm = optimizer.step(gradients, 1e-2)
        digest.update(np.array([loss, norm]).tobytes() + gradients.flat.tobytes())
    digest.update(weights.flat.tobytes())
    return digest.hexdigest()


@functools.cache
def portable_bits(name: str) -> str:
    return trained_bits(MODELS[name], Team(1, "portable"), "fp32")


@pytest.mark.parametrize("name", ["tied", "grouped-query"])
@pytest.mark.parametrize("isa", ISAS)
def test_training_has_the_same_bits_on_all_threads_and_instruction_sets(
    name: str, isa: str
) -> None:
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}, only {', '.join(available_isas())}")
    for threads in THREADS:
        got = trained_bits(MODELS[name], Team(threads, isa), "fp32")
        assert got == portable_bits(name), f"{threads} threads"


def test_training_in_bf16_has_the_same_bits_on_all_threads() -> None:
    if not Team(1).has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    c = MODELS["tied"]
    c = dataclasses.replace(c, hidden=c.hidden + c.hidden % 2)
    assert len({trained_bits(c, Team(threads), "bf16") for threads in THREADS}) == 1


def test_positions_of_whole_sequences_are_none() -> None:
    c, (B, T) = MODELS["grouped-query"], (13, 8)
    model, _, gradients = planned(c, B, T, Team(2))
    ids, targets, _ = packed(c, B, T)
    loss = model.gradient(ids, targets, 1.0, False)
    want = gradients.flat.copy()
    whole = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    assert model.gradient(ids, targets, 1.0, False, positions=whole) == loss
    assert gradients.flat.tobytes() == want.tobytes()
    assert model.loss(ids, targets, whole) == loss == model.loss(ids, targets)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_follows_a_windows_last_target_may_be_anything(precision: str) -> None:
    """Those rows are no work, and no token there can change a loss or a gradient of others."""
    if precision == "bf16" and not Team(1).has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    c, (B, T) = dataclasses.replace(MODELS["tied"], hidden=54), (5, 131)
    weights, gradients = Parameters(c), Parameters(c)
    weights.load(random_weights(c))
    model = Decoder(weights, Team(2), B, T, gradients, precision)
    ids, targets, positions = packed(c, B, T)
    loss = model.gradient(ids, targets, 1.0, False, positions=positions)
    want, lengths = gradients.flat.copy(), model.space.lengths.tolist()
    rows = [(b, at) for s in model.order for b, at in windows(positions) if b == s]
    last = [max((t + 1 for t in range(len(y)) if y[t] >= 0), default=0)
            for y in (targets[b, at] for b, at in rows)]  # fmt: skip
    assert lengths == last and 0 in last and len(set(last)) > 4
    for (b, at), n in zip(rows, last, strict=True):
        ids[b, at.start + n : at.stop] = 3
    assert model.gradient(ids, targets, 1.0, False, positions=positions) == loss
    assert gradients.flat.tobytes() == want.tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_those_of_windows_in_rows_of_their_own(precision: str) -> None:
    """Padded: what every row adds is the same to the last bit, not so the order of the sums."""
    if precision == "bf16" and not Team(1).has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    c, (B, T) = dataclasses.replace(MODELS["grouped-query"], hidden=54), (5, 131)
    weights, gradients = Parameters(c), Parameters(c)
    weights.load(random_weights(c))
    ids, targets, positions = packed(c, B, T)
    loss = Decoder(weights, Team(2), B, T, gradients, precision).gradient(
        ids, targets, 1.0, False, positions=positions
    )
    got = gradients.flat.copy()
    parts = windows(positions)
    rows = np.zeros((len(parts), T), np.int32)
    wanted = np.full_like(rows, -1)
    for row, y, (b, at) in zip(rows, wanted, parts, strict=True):
        row[: at.stop - at.start], y[: at.stop - at.start] = ids[b, at], targets[b, at]
    padded = Decoder(weights, Team(2), len(parts), T, gradients, precision)
    assert padded.gradient(rows, wanted, 1.0, False) == pytest.approx(loss, rel=4 * U)
    assert_close("decoder", got, gradients.flat, gradients.flat)


@pytest.mark.parametrize(
    ("positions", "why"),
    [
        (np.zeros((5, 7), np.int32), r"positions are \(5, 7\) of int32, but must be \(5, 8\)"),
        (np.zeros(40, np.int32), r"positions are \(40,\)"),
        (np.zeros((5, 8), np.int64), r"of int64, but must be \(5, 8\) of int32"),
        (np.ones((5, 8), np.int32), "sequence 0 has 1 in front, at 0"),
        (np.arange(40, dtype=np.int32).reshape(5, 8), "sequence 1 has 8 in front, at 0"),
        (np.tile(np.arange(0, 16, 2, dtype=np.int32), (5, 1)), "sequence 0 has 2 after 0, at 1"),
    ],
)
def test_positions_that_do_not_fit_are_refused(positions: Array, why: str) -> None:
    model, _, _ = planned(MODELS["tied"], 5, 8, Team(1))
    ids, targets, _ = packed(MODELS["tied"], 5, 8)
    with pytest.raises(ValueError, match=why):
        model.gradient(ids, targets, 1.0, False, positions=positions)
    with pytest.raises(ValueError, match=why):
        model.loss(ids, targets, positions)
