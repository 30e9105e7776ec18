"""Weights in fp32, bf16 and int8, few rows at a time, and a pass through all layers in one call."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import reference as ref
from case import Array, draw, poison
from conftest import TINY, examples, prose
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_weights import rounded_weight
from tolerance import assert_close

import crystalline
from crystalline._native import ISAS, PRECISIONS, Stack, Team, available_isas
from crystalline.decoder.positions import rope_tables
from crystalline.errors import UsageError
from crystalline.inference.model import Model
from crystalline.inference.weights import Cache

FEW = settings(max_examples=examples(25), deadline=None, derandomize=True)
LOSS_MARGIN = {"fp32": 0.0, "bf16": 0.01, "int8": 0.02}  # nats a token, on a trained model


@functools.cache
def team(isa: str, threads: int = 2) -> Team:
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}, only {', '.join(available_isas())}")
    return Team(threads, isa)


def product(t: Team, x: Array, w: Array, precision: str, init: Array | None = None) -> Array:
    y = poison(len(x), len(w))
    t.matmul_weight(y, x, t.weight(w, precision), init)
    return y


@FEW
@given(
    R=st.integers(1, 20), N=st.integers(1, 300), K=st.integers(1, 70),
    precision=st.sampled_from(PRECISIONS), add=st.booleans(),
)  # fmt: skip
def test_a_product_of_any_shape(R: int, N: int, K: int, precision: str, add: bool) -> None:
    x, w, init = draw(R, K), draw(N, K, seed=1), draw(R, N, seed=2) if add else None
    results = [product(team(isa), x, w, precision, init) for isa in available_isas()]
    assert len({y.tobytes() for y in results}) == 1
    q, scale = rounded_weight(w, precision)
    kept = q * scale[:, None]
    if init is None:
        assert_close("matmul", results[0], ref.matmul(x, kept), x, kept)
    # A row's result does not depend on what it is multiplied together with.
    alone = [
        product(team(ISAS[0]), x[r], w, precision, None if init is None else init[r])
        for r in (slice(r, r + 1) for r in range(R))
    ]
    assert np.concatenate(alone).tobytes() == results[0].tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_few_rows_have_the_bits_of_many(isa: str, precision: str) -> None:
    """Decoding goes by the kernel of few rows, prefill by the tiles of training."""
    x, w, init = draw(40, 100), draw(333, 100, seed=1), draw(40, 333, seed=2)
    many = product(team(isa), x, w, precision, init)
    for rows in (1, 3, 13, 16):
        assert np.array_equal(product(team(isa), x[:rows], w, precision, init[:rows]), many[:rows])


@pytest.mark.parametrize("isa", ISAS)
def test_rounding_is_to_nearest_even(isa: str) -> None:
    """A product with the identity gives the kept numbers back."""
    t, eye = team(isa), np.eye(6, dtype=np.float32)
    tie = np.float32(1 + 2**-8)  # halfway between two bf16; the even one is 1
    w = np.array([[1, tie, 1 + 3 * 2.0**-8, -tie, 3.0e38, 0]], np.float32)
    assert product(t, eye, w, "bf16")[:, 0].tolist() == [
        1, 1, 1 + 2.0**-6, -1, rounded_weight(w, "bf16")[0][0, 4], 0,
    ]  # fmt: skip
    w = np.array([[127, 2.5, 3.5, -0.5, -1.5, 0], [0, 0, 0, 0, 0, 0]], np.float32)
    got = product(t, eye, w, "int8")
    assert got[:, 0].tolist() == [127, 2, 4, 0, -2, 0] and not got[:, 1].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_does_not_get_lost(
    isa: str, precision: str, bad: float
) -> None:
    x, w = abs(draw(2, 40)), draw(50, 40, seed=1)
    w[7, 13] = bad
    y = product(team(isa), x, w, precision)
    assert not np.isfinite(y[:, 7]).any()
    assert np.isfinite(np.delete(y, 7, axis=1)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_in_given_room_is_the_same(precision: str) -> None:
    t, x, w = team(available_isas()[-1]), draw(3, 40), draw(70, 40, seed=1)
    size = t.weight_bytes(70, 40, precision)
    block = np.full(size + 128, 0xA5, np.uint8)
    kept, y = t.weight(w, precision, block[64:-64]), poison(3, 70)
    t.matmul_weight(y, x, kept)
    assert np.array_equal(y, product(t, x, w, precision))
    assert (block[:64] == 0xA5).all() and (block[-64:] == 0xA5).all()
    with pytest.raises(ValueError, match=rf"bytes of room is {size + 64}, but .* is {size}"):
        t.weight(w, precision, block[64:])


def test_what_does_not_fit_is_told() -> None:
    t, w = team(ISAS[0], 1), draw(5, 7)
    packed = t.weight(w, "int8")
    with pytest.raises(UsageError, match="precision is 'int4'; choose one of fp32, bf16, int8"):
        t.weight(w, "int4")
    with pytest.raises(ValueError, match=r"w is \(0, 7\)"):
        t.weight(w[:0], "fp32")
    with pytest.raises(ValueError, match="columns of x is 6, but columns of w is 7"):
        t.matmul_weight(poison(1, 5), draw(1, 6), packed)
    y = poison(1, 5)
    with pytest.raises(ValueError, match="init is y"):
        t.matmul_weight(y, draw(1, 7), packed, y)
    for other in available_isas()[1:]:
        with pytest.raises(ValueError, match=f"packed for portable, but the team runs {other}"):
            team(other, 1).matmul_weight(y, draw(1, 7), packed)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        t.embedding_weight(poison(1, 7), packed, np.array([5], np.int32))


# --- A model in each precision.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("precision")
    (root / "prose.txt").write_text(prose(4000))
    crystalline.train(root / "prose.txt", root / "m", **TINY, steps=150, lr=3e-3)
    return root / "m"


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Model]:
    return {precision: crystalline.load(folder, precision=precision) for precision in PRECISIONS}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_steps_have_the_bits_of_prefill(models: dict[str, Model], precision: str) -> None:
    """Token by token, and beside other sequences, the logits are those of all at once."""
    m = models[precision]
    texts = [np.arange(1, 20, dtype=np.int32), np.arange(30, 42, dtype=np.int32)]
    want = [m.logits(ids) for ids in texts]
    caches = [Cache(m.config, 24) for _ in texts]
    for at in range(19):
        going = [i for i, ids in enumerate(texts) if at < len(ids)]
        h = m._hidden([texts[i][at : at + 1] for i in going], [caches[i] for i in going])
        for row, i in zip(m._project(h), going, strict=True):
            assert np.array_equal(row, want[i][at])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_batch_gives_the_texts_of_each_alone(models: dict[str, Model], precision: str) -> None:
    m = models[precision]
    prompts = ["the", "", "seven lamps " * 20, "the quick brown fox", "a"]
    options = {"max_tokens": 40, "temperature": 1.0, "stop": "q", "repetition_penalty": 1.1}
    together = m.generate_batch(prompts, seed=3, **options)
    assert together == [m.generate(p, seed=3 + i, **options) for i, p in enumerate(prompts)]
    assert len(set(together)) > 2 and m.generate_batch([]) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_text_on_any_threads_and_instruction_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    texts, logits = set(), set()
    for isa in available_isas():
        monkeypatch.setenv("CRYSTALLINE_ISA", isa)
        for threads in (1, 2, 5):
            m = crystalline.load(folder, threads=threads, precision=precision)
            texts.add(tuple(m.generate_batch(["the", "a fox"], max_tokens=30, temperature=1.0)))
            logits.add(m.logits(range(20)).tobytes())
    assert len(texts) == 1 and len(logits) == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounded_weights_cost_little(models: dict[str, Model], precision: str) -> None:
    """Logits move by little beside their spread, and the loss by little beside itself."""
    exact, m = models["fp32"], models[precision]
    ids = exact.tokenizer.encode(prose(40)).tolist()[:24]
    want, got = exact.logits(ids), m.logits(ids)
    share = {"fp32": 0.0, "bf16": 2.0**-6, "int8": 2.0**-5}[precision]
    assert abs(got - want).max() <= share * (want.max() - want.min())
    assert abs(m.loss(ids) - exact.loss(ids)) <= LOSS_MARGIN[precision]
    assert precision == "fp32" or not np.array_equal(got, want)


def test_fewer_bits_take_less_memory(models: dict[str, Model]) -> None:
    fp32, bf16, int8 = (models[p].weight_bytes for p in PRECISIONS)
    assert bf16 < 0.55 * fp32 and int8 < 0.35 * fp32


def test_another_precision_is_refused(folder: Path) -> None:
    words = "precision is 'fp8'; choose one of fp32, bf16, int8"
    with pytest.raises(UsageError, match=words):
        crystalline.load(folder, precision="fp8")
    with pytest.raises(UsageError, match="must be a list"):
        crystalline.load(folder).generate_batch("the")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": np.zeros(3, np.int32)}, "the sum of rows is 2, but ids is 3"),
        ({"rows": np.array([0], np.int64)}, "sequence 0 has 0 rows; give 1 or more"),
        ({"positions": np.array([23], np.int64)}, "2 rows from position 23 are outside"),
        ({"ids": np.array([0, 300], np.int32)}, "outside the vocabulary"),
        ({"keys": []}, "keys is 0, but rows is 1"),
        ({"h": poison(2, 5)}, "columns of h is 5, but width of the model is"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(
    models: dict[str, Model], change: dict[str, Array], words: str
) -> None:
    m = models["int8"]
    cache = Cache(m.config, 24)
    given = {
        "h": poison(2, m.config.dim), "stack": m._weights.stack, "ids": np.zeros(2, np.int32),
        "keys": [cache.keys], "values": [cache.values], "rows": np.array([2], np.int64),
        "positions": np.zeros(1, np.int64),
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        m.team.decode(**(given | change))
    assert not cache.keys.any()


def test_two_sequences_with_one_cache_are_refused(models: dict[str, Model]) -> None:
    m = models["fp32"]
    one, other = Cache(m.config, 24), Cache(m.config, 24)
    for keys, values in (
        ([one.keys, one.keys], [one.values, other.values]),
        ([one.keys, other.keys], [one.values, one.values]),
    ):
        with pytest.raises(ValueError, match="sequences 0 and 1 share a cache"):
            m.team.decode(
                poison(2, m.config.dim), m._weights.stack, np.zeros(2, np.int32), keys, values,
                np.ones(2, np.int64), np.zeros(2, np.int64),
            )  # fmt: skip
    assert not one.keys.any()
    assert not other.values.any()


def test_a_stack_keeps_its_layers() -> None:
    """Also when the lists that it was made from are emptied."""
    t, gain = Team(1), np.ones(8, np.float32)
    shapes = ((16, 8), (8, 8), (6, 8), (6, 8), (8, 6))
    qkv, out, gate, up, down = (t.weight(draw(*s, seed=i)) for i, s in enumerate(shapes))
    one = [gain, qkv, out, gain, gate, up, down]
    kept = Stack([tuple(one)], gain, t.weight(draw(9, 8)), *rope_tables(4, 4, 1e4), 2, 1, 1e-5)
    fresh = [gain, *(t.weight(draw(*s, seed=i)) for i, s in enumerate(shapes))]
    fresh.insert(3, gain)
    stack = Stack([fresh], gain, t.weight(draw(9, 8)), *rope_tables(4, 4, 1e4), 2, 1, 1e-5)
    fresh.clear()
    ids, rows = np.array([3, 1], np.int32), np.array([2], np.int64)
    results = []
    for each in (kept, stack):
        h, keys = poison(2, 8), np.zeros((1, 1, 4, 64), np.float32)
        values = np.zeros((1, 1, 64, 32), np.float32)
        t.decode(h, each, ids, [keys], [values], rows, np.zeros(1, np.int64))
        results.append(h.tobytes())
    assert results[0] == results[1]


def test_a_step_holds_the_caches_it_was_handed(models: dict[str, Model]) -> None:
    """They may be made when asked for; so large, they would leave the process when dropped."""
    m = models["fp32"]
    c, D = m.config, m.config.dim

    class Made:
        def __init__(self, *shape: int) -> None:
            self.shape = shape

        def __len__(self) -> int:
            return 1

        def __getitem__(self, at: int) -> Array:
            return np.zeros(self.shape, np.float32)

    results = []
    for room in (64, -(-(48 << 20) // (64 * c.layers * c.kv_heads * c.head_dim)) * 64):
        h, outer = poison(2, D), (c.layers, c.kv_heads)
        keys = Made(*outer, c.head_dim, room)
        values = Made(*outer, room, -(-c.head_dim // 32) * 32)
        m.team.decode(
            h, m._weights.stack, np.array([3, 5], np.int32), keys, values,
            np.array([2], np.int64), np.zeros(1, np.int64),
        )  # fmt: skip
        results.append(h.tobytes())
    assert results[0] == results[1]
