"""Attention that leaves padding out: the bits of every sequence on its own, and of no lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from case import Array, draw, poison
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline._native import ISAS, Team, available_isas
from crystalline.config import ModelConfig
from crystalline.decoder.decoder import Decoder, Parameters, initialise
from crystalline.optimizers import AdamW, AdamWConfig

THREADS = (1, 2, 3, 12)
Shape = tuple[int, int, int, int]  # T, heads, key/value heads, width of a head


def team(isa: str, threads: int) -> Team:
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}, only {', '.join(available_isas())}")
    return Team(threads, isa)


def inputs(lengths: list[int], shape: Shape) -> tuple[Array, Array]:
    """qkv and dout, with no numbers at all in the rows that nobody may look at."""
    T, H, K, Dh = shape
    R = len(lengths) * T
    qkv, dout = draw(R, (H + 2 * K) * Dh), draw(R, H * Dh, seed=1)
    for b, length in enumerate(lengths):
        qkv[b * T + length : (b + 1) * T] = np.nan
        dout[b * T + length : (b + 1) * T] = np.nan
    return qkv, dout


def both(
    team: Team, qkv: Array, dout: Array, T: int, shape: Shape, lengths: Array | None
) -> tuple[Array, Array, Array]:
    """out, lse and dqkv of attention, forward and backward."""
    _, H, K, Dh = shape
    out, lse, dqkv = poison(len(qkv), H * Dh), poison(len(qkv) * H), poison(*qkv.shape)
    team.attention(out, lse, qkv, T, H, K, lengths)
    team.attention_bwd(dqkv, dout, out, qkv, lse, T, H, K, lengths)
    return out, lse, dqkv


def check(team: Team, lengths: list[int], shape: Shape) -> None:
    """Every sequence is as if it were alone and of its own length; all the rest is zero."""
    T, H, _, _ = shape
    qkv, dout = inputs(lengths, shape)
    out, lse, dqkv = both(team, qkv, dout, T, shape, np.array(lengths, np.int64))
    alone = Team(1, "portable")
    for b, length in enumerate(lengths):
        rows, end = slice(b * T, b * T + length), slice(b * T + length, (b + 1) * T)
        assert not out[end].any() and not dqkv[end].any(), f"sequence {b}: padding is not zero"
        if length == 0:
            continue
        want = both(alone, qkv[rows].copy(), dout[rows].copy(), length, shape, None)
        at = b * H * T
        got = out[rows], lse[at : at + H * length], dqkv[rows]
        for name, g, w in zip(("out", "lse", "dqkv"), got, want, strict=True):
            assert g.tobytes() == w.tobytes(), f"{name} of sequence {b}, {length} of {T} rows"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([0, 1, 5, 9], (9, 4, 2, 6)),
        ([130, 64, 65, 48, 49, 0, 129, 63, 17, 1, 47, 128, 16], (130, 3, 1, 34)),
        ([0, 0], (5, 2, 2, 8)),
        ([7], (7, 1, 1, 2)),
    ],
)
def test_each_sequence_has_the_bits_it_has_alone(
    lengths: list[int], shape: Shape, isa: str
) -> None:
    for threads in THREADS:
        check(team(isa, threads), lengths, shape)


@settings(max_examples=examples(30), deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5), K=st.integers(1, 3),
    share=st.integers(1, 3), half=st.integers(1, 20), over=st.integers(0, 3),
)  # fmt: skip
def test_lengths_of_any_kind(lengths: list[int], K: int, share: int, half: int, over: int) -> None:
    shape = (max(1, *lengths) + over, K * share, K, 2 * half)
    for isa in available_isas():
        check(Team(2, isa), lengths, shape)


@pytest.mark.parametrize("isa", ISAS)
def test_full_lengths_are_no_lengths(isa: str) -> None:
    shape = (33, 4, 2, 10)
    qkv, dout = inputs([33] * 5, shape)
    given_full = both(team(isa, 2), qkv, dout, 33, shape, np.full(5, 33, np.int64))
    given_none = both(team(isa, 2), qkv, dout, 33, shape, None)
    for a, b in zip(given_full, given_none, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("lengths", [[4, 3, 10], [-1, 3, 4], [2**62, 1, 1], [-(2**63), 1, 1]])
def test_lengths_outside_the_sequence_are_refused_and_nothing_is_written(
    lengths: list[int],
) -> None:
    shape = (9, 2, 1, 4)
    qkv, dout = draw(27, 16), draw(27, 8)
    ends = np.array(lengths, np.int64)
    out, lse, dqkv = poison(27, 8), poison(54), poison(27, 16)
    with pytest.raises(ValueError, match=r"^attention: "):
        Team(2).attention(out, lse, qkv, 9, *shape[1:3], ends)
    with pytest.raises(ValueError, match=r"^attention_bwd: "):
        Team(2).attention_bwd(dqkv, dout, dout, qkv, lse, 9, *shape[1:3], ends)
    assert all(np.isnan(a).all() for a in (out, lse, dqkv))


@pytest.mark.parametrize("count", [0, 2, 4])
def test_lengths_for_other_sequences_are_refused_with_both_numbers(count: int) -> None:
    ends = np.full(count, 3, np.int64)
    with pytest.raises(ValueError, match=rf"^attention: .*{count}.* 3"):
        Team(1).attention(poison(27, 8), poison(54), draw(27, 16), 9, 2, 1, ends)


def test_lengths_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="dtype mismatch"):
        Team(1).attention(
            poison(27, 8),
            poison(54),
            draw(27, 16),
            9,
            2,
            1,
            np.full(3, 3, np.int32),  # type: ignore[arg-type]
        )


# --- Training.

CONFIG = ModelConfig(
    vocab_size=300, dim=40, layers=2, heads=4, kv_heads=2, hidden=52, seq_len=24
)  # fmt: skip


def padded_batch(seed: int) -> tuple[Array, Array]:
    """Thirteen documents of 0 to 24 tokens; one has a hole in what is learnt."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 300, (13, 25), dtype=np.int32)
    targets = ids[:, 1:].copy()
    ends = rng.integers(0, 25, 13)
    ends[:3] = 0, 24, 1
    targets[np.arange(24) >= ends[:, None]] = -1
    targets[1, 5:9] = -1
    return ids[:, :-1], targets


def trained(threads: int) -> tuple[list[bytes], list[float], Array]:
    """Weights after each of three steps, the losses, and the last batch's lengths."""
    team = Team(threads)
    weights, gradients = Parameters(CONFIG), Parameters(CONFIG)
    initialise(weights, 3)
    decoder = Decoder(weights, team, 13, 24, gradients)
    optimizer = AdamW(weights, team, AdamWConfig())
    after, losses = [], []
    for step in range(3):
        ids, targets = padded_batch(step)
        losses.append(decoder.gradient(ids, targets, 1e-2, False))
        optimizer.step(gradients, 1e-2)
        after.append(weights.flat.tobytes())
    return after, losses, decoder.space.lengths.copy()


def test_padding_left_out_trains_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {threads: trained(threads) for threads in (1, 3)}
    take = Decoder._take

    def take_whole(self: Decoder, *batch: Any) -> None:
        take(self, *batch)
        self.space.lengths[...] = self.T

    monkeypatch.setattr(Decoder, "_take", take_whole)
    weights, losses, lengths = trained(1)
    assert (lengths == 24).all()
    for got_weights, got_losses, got_lengths in short.values():
        assert got_losses == losses and got_weights == weights
        assert 0 in got_lengths and 24 in got_lengths and len(set(got_lengths.tolist())) > 4


def test_a_length_reaches_to_the_last_target_beyond_any_hole() -> None:
    weights = Parameters(CONFIG)
    initialise(weights, 0)
    decoder = Decoder(weights, Team(1), 13, 24)
    ids, targets = padded_batch(0)
    decoder.loss(ids, targets)
    last = [max((t + 1 for t in range(24) if row[t] >= 0), default=0) for row in targets]
    assert decoder.space.lengths.tolist() == [last[s] for s in decoder.order]
    assert last[1] == 24


def test_padding_may_hold_any_tokens() -> None:
    """The loss of a batch does not depend on what stands where nothing is learnt."""
    weights = Parameters(CONFIG)
    initialise(weights, 0)
    decoder = Decoder(weights, Team(2), 13, 24)
    ids, targets = padded_batch(5)
    first = decoder.loss(ids, targets)
    ends = [max((t + 1 for t in range(24) if row[t] >= 0), default=0) for row in targets]
    ids[np.arange(24) >= np.array(ends)[:, None]] = 7
    assert decoder.loss(ids, targets) == first
