"""Where activations lie: arrays in the gradients' memory are gone before a gradient is written,
no bit depends on it, and the bytes are those that were counted."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from case import Array
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import MODELS, batch, random_weights

from crystalline._native import Team
from crystalline.config import PRESETS, ModelConfig, parameter_count, parameter_spans
from crystalline.decoder.activations import Layout, decoder_arrays, layout
from crystalline.decoder.candidates import Candidates
from crystalline.decoder.decoder import Decoder, Parameters
from crystalline.forecast.memory import blocks
from crystalline.training.plan import Recipe

PRECISIONS = ("fp32", "bf16") if Team(1).has_bf16 else ("fp32",)
# What the backward of a layer's two halves reads, and the weights whose gradients it writes.
HALVES = (
    (("x", "r1", "qkv", "att", "lse"), ("input_layernorm", "self_attn.")),
    (("mid", "r2", "gu"), ("post_attention_layernorm", "mlp.")),
)


def room(c: ModelConfig, B: int, bf16: bool, lend: bool) -> tuple[Layout, dict[str, int]]:
    """The layout of a decoder, and the floats of its places."""
    arrays, sizes = decoder_arrays(c, B, c.seq_len, True, bf16, False), {}
    for a in arrays:
        sizes[a.place] = max(sizes.get(a.place, 0), a.floats)
    return layout(arrays, c, lend), sizes


SIZE = st.integers(1, 40)


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(
    layers=st.integers(1, 6), width=SIZE, hidden=SIZE, B=st.integers(1, 13), T=SIZE,
    tied=st.booleans(), bf16=st.booleans(),
)  # fmt: skip
def test_backward_writes_no_gradient_over_what_it_has_yet_to_read(
    layers: int, width: int, hidden: int, B: int, T: int, tied: bool, bf16: bool
) -> None:
    c = ModelConfig(50, 2 * width, layers, 1, 1, 2 * hidden, T, tied=tied)
    where, sizes = room(c, B, bf16, lend=True)
    spans = {place: (at, at + sizes[place]) for place, at in where.lent.items()}
    for (_, end), (begin, _) in itertools.pairwise(sorted(spans.values())):
        assert end <= begin
    assert sum(sizes[place] for place in where.own) == where.floats
    assert where.own.keys() | spans.keys() == sizes.keys()
    steps = [
        ([f"{layer}.{name}" for name in read], tuple(f"model.layers.{layer}.{w}" for w in written))
        for layer in range(layers)
        for read, written in HALVES
    ]
    steps.append((["x"], ("model.norm", "lm_head", "model.embed_tokens")))
    if not tied:
        steps.insert(0, ([], ("model.embed_tokens",)))
    while steps:
        yet_to_read = {place for places, _ in steps for place in places}
        _, written = steps.pop()
        for name, (begin, end) in parameter_spans(c).items():
            if name.startswith(written):
                for place in yet_to_read & spans.keys():
                    at, to = spans[place]
                    assert to <= begin or end <= at, f"{name} over {place}"
    assert spans.keys() <= {p for p in sizes if "." in p or p == "x"}


def gradient(
    name: str, precision: str, sampled: bool, lend: bool
) -> tuple[list[float], list[Array]]:
    """Losses and gradients of two steps, from gradients that are no numbers."""
    c = replace(MODELS[name], hidden=2 * MODELS[name].hidden)
    team, weights, gradients = Team(2), Parameters(c), Parameters(c)
    weights.load(random_weights(c))
    candidates = Candidates(np.ones(c.vocab_size, np.int64), 2, 0, team) if sampled else None
    decoder = Decoder(
        weights, team, 13, 8, gradients, precision,
        candidates.log_expected if candidates else None, lend,
    )  # fmt: skip
    losses, found = [], []
    for seed in range(2):
        gradients.flat[...] = np.nan
        if sampled:  # the rows that are touched, which are all here, begin at zero
            for table in ("model.embed_tokens.weight", "lm_head.weight"):
                gradients.named.get(table, np.empty(0))[...] = 0.0
        drawn = candidates.draw(seed) if candidates else None
        losses.append(decoder.gradient(*batch(c, 13, 8, seed), 0.01, False, drawn))
        found.append(gradients.flat.copy())
        losses.append(decoder.loss(*batch(c, 13, 8, seed)))
    return losses, found


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_lending_changes_no_bit(name: str, precision: str, sampled: bool) -> None:
    losses, found = gradient(name, precision, sampled, lend=True)
    want_losses, want = gradient(name, precision, sampled, lend=False)
    assert losses == want_losses
    for got, due in zip(found, want, strict=True):
        assert np.isfinite(due).all()
        assert got.tobytes() == due.tobytes()


def test_lent_gradients_cannot_be_added_to() -> None:
    c = ModelConfig(300, 32, 2, 2, 1, 48, 16)
    decoder = Decoder(Parameters(c), Team(1), 5, 16, Parameters(c), lend_gradients=True)
    ids = np.zeros((5, 16), np.int32)
    with pytest.raises(ValueError, match="lent to activations cannot be added to"):
        decoder.gradient(ids, ids, 1.0, True)


def owner(a: Array) -> Array:
    """The array that holds the memory of a view."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


@pytest.mark.parametrize("lend", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("samples", [0, 40])
def test_the_forecast_is_what_is_held(precision: str, samples: int, lend: bool) -> None:
    c, team, B, T = ModelConfig(300, 32, 2, 2, 1, 48, 16), Team(2), 5, 16
    often = np.zeros(300, np.float32) if samples else None
    weights, gradients = Parameters(c), Parameters(c)
    space = Decoder(weights, team, B, T, gradients, precision, often, lend).space
    blocks = {id(owner(a)): owner(a) for a in (*space.a.values(), *space.n.values())}
    assert (id(owner(gradients.flat)) in blocks) == lend
    held = sum(block.nbytes for block in blocks.values())
    if lend:
        held -= gradients.flat.nbytes
    work = team.work_floats(
        space.groups, T, c.dim, c.heads, c.kv_heads, c.hidden, c.vocab_size, samples,
        bf16=precision == "bf16",
    )
    recipe = Recipe(B, 1 if lend else 2, 1e-3, 0, samples=samples, precision=precision)
    due = held + 4 * (4 * weights.flat.size + work)
    assert forecast(c, recipe, team) == due


def forecast(c: ModelConfig, recipe: Recipe, team: Team) -> int:
    """Bytes of all blocks."""
    return 4 * sum(sum(sizes) for sizes in blocks(c, recipe, team).values())


def kept(c: ModelConfig, R: int, bf16: bool) -> int:
    """Floats that the layers must keep for backward: x and mid, and in the precision at hand q, k,
    v, attention's output, gate and up; the norms' roots and attention's sums."""
    E = (c.heads + 2 * c.kv_heads) * c.head_dim
    in_precision = (E + c.dim + 2 * c.hidden) // (2 if bf16 else 1)
    return c.layers * R * (2 * c.dim + in_precision + 2 + c.heads)


@pytest.mark.parametrize("preset", ["seed", "m"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_more_is_held_than_a_step_needs(preset: str, precision: str) -> None:
    c, B, bf16 = PRESETS[preset], 4, precision == "bf16"
    R, lines = B * c.seq_len, 16 * 9 * (c.layers + 2)  # of the cache, one an array
    E = (c.heads + 2 * c.kv_heads) * c.head_dim
    # For the step at hand: x, dx, dh; q, k, v and their gradients, or the feed-forward's inside;
    # with bf16 also q, k, v and attention's output in float32 and what products read.
    shared = R * (3 * c.dim + max(E, c.hidden) + 3 + (E + 3 * c.dim // 2 if bf16 else 0))
    whole, lent = (room(c, B, bf16, lend)[0].floats for lend in (False, True))
    assert kept(c, R, bf16) < whole <= kept(c, R, bf16) + shared + lines
    # Of the layers' gradients all but one layer's finds use, if there is as much to keep.
    layers = parameter_count(c) - c.vocab_size * c.dim - c.dim
    assert whole - lent >= min(0.8 * layers * (c.layers - 1) / c.layers, 0.5 * whole)


def test_the_110m_model_stays_within_its_bytes() -> None:
    """Weights, gradients, moments, activations and work space, in MiB: 3232 and 2869 before."""
    c, B = PRESETS["m"], 4
    for precision, most in (("fp32", 2570), ("bf16", 2260)):
        recipe = Recipe(B, 1, 1e-3, 0, precision=precision)
        assert forecast(c, recipe, Team(2)) <= most * 2**20


def test_many_layers_are_laid_out_at_once() -> None:
    c = ModelConfig(300, 16, 2000, 1, 1, 32, 8)
    where, sizes = room(c, 1, False, lend=True)
    assert math.isclose(where.floats + sum(sizes[p] for p in where.lent), sum(sizes.values()))
