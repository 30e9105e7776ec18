"""The lattice's embedding and rotary tables: exact, of full rank, the same bits everywhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import reference as ref
from case import Array
from numpy._core._multiarray_umath import __cpu_dispatch__
from tolerance import U

from crystalline.config import ModelConfig
from crystalline.decoder.decoder import Parameters, initialise
from crystalline.decoder.positions import model_tables
from crystalline.lattice.circle import cosine_sine, golden
from crystalline.lattice.embedding import SIGMA, frequency, lattice_embedding
from crystalline.lattice.rotary import lattice_tables

SIZES = [(V, D) for V in (300, 1000, 13344, 50000) for D in (64, 250, 1024)]
# Where as many rows as columns, or a Fibonacci number of them, make it hard.
HARD = [(300, 300), (610, 610), (987, 1024), (1024, 1024), (1597, 1024)]
# Of what the functions below give, on any machine.
BITS = {
    "embedding": "c82be49e8ed39e24a48cd24991b3872b2d791990011acb57865789db483ae212",
    "tables": "4d8652ae21055b52f031a614fe8ec89bcb7c60c84a9534c00ec210155a35a8a5",
}


def embedding(V: int, D: int) -> Array:
    view = np.full((V, D), np.nan, np.float32)
    lattice_embedding(view)
    return view


def singular_values(E: Array) -> Array:
    """In float64, falling."""
    wide = E.astype(np.float64)
    if len(wide) < 4 * wide.shape[1]:
        return np.linalg.svd(wide, compute_uv=False)
    return np.sqrt(np.linalg.eigvalsh(wide.T @ wide))[::-1]


def full_rank(E: Array) -> bool:
    """As NumPy judges it, for numbers of float32."""
    values = singular_values(E)
    return bool(values[-1] > values[0] * max(E.shape) * np.finfo(np.float32).eps)


# --- the embedding --------------------------------------------------------------------------------


@pytest.mark.parametrize(("V", "D"), SIZES + HARD)
def test_full_rank_no_duplicate_rows_and_the_moments_stated(V: int, D: int) -> None:
    E = embedding(V, D)
    assert np.isfinite(E).all()
    assert full_rank(E)
    assert len({hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in E}) == V
    assert abs(E.mean(dtype=np.float64)) <= 1e-2 * SIGMA
    assert abs(E.std(dtype=np.float64) / SIGMA - 1) <= 0.05


def test_every_smaller_table_has_the_moments_too() -> None:
    """Of all vocabularies and widths in one go, as a table is a corner of a larger one."""
    V, D = 4000, 256
    E = embedding(V, D).astype(np.float64) / SIGMA
    count = np.arange(1, V + 1)[:, None] * np.arange(1, D + 1)
    mean = E.cumsum(0).cumsum(1) / count
    std = np.sqrt((E**2).cumsum(0).cumsum(1) / count - mean**2)
    assert abs(mean[299:, 63:]).max() <= 1e-2
    assert abs(std[299:, 63:] - 1).max() <= 0.05


@pytest.mark.parametrize(("V", "D"), [(1000, 1024), (300, 300)])
def test_without_the_square_the_rank_is_not_full(V: int, D: int) -> None:
    """Why the spiral is read at (t + 1)^2: at t + 1 its columns come close to each other."""
    k = np.arange(1, V + 1, dtype=np.uint64)[:, None]
    n = np.array([golden(frequency(j)) for j in range(D)], np.uint64)
    phase = np.arange(D, dtype=np.uint64) % np.uint64(2) << np.uint64(61)
    plain = (SIGMA * 2**0.5 * cosine_sine(k * n + phase)[0]).astype(np.float32)
    assert not full_rank(plain)


def test_the_columns_of_small_tables_are_as_independent_as_those_of_chance() -> None:
    for V, D in ((300, 256), (1000, 1024), (1500, 1024)):
        normal = np.random.default_rng(0).standard_normal((V, D))
        ours, theirs = (s[-1] / s[0] for s in map(singular_values, (embedding(V, D), normal)))
        assert ours > theirs / 2


def test_every_number_is_the_nearest_one() -> None:
    E, rng = embedding(50000, 1024), np.random.default_rng(1)
    places = [(0, 0), (49999, 1023), *rng.integers(0, E.shape, (300, 2)).tolist()]
    with mpmath.workdps(80):
        for t, j in places:
            turn = ref.DIMENSIONAL[j % 24] * mpmath.mpf(3) ** (j // 24) * (t + 1) ** 2 * mpmath.phi
            angle = 2 * mpmath.pi * turn + mpmath.pi / 4 * (j % 2)
            true = mpmath.mpf("0.02") * mpmath.sqrt(2) * mpmath.cos(angle)
            half_ulp = float(np.spacing(abs(E[t, j]))) / 2
            assert abs(float(E[t, j] - true)) <= 1.001 * half_ulp, (t, j)


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    E = embedding(1003, 250)
    assert np.array_equal(E[:37, :6], embedding(37, 6))
    assert np.array_equal(E[:1], embedding(1, 250))


def test_only_the_embedding_is_the_lattices_and_no_seed_changes_it() -> None:
    c = ModelConfig(500, 64, 2, 4, 2, 160, 16, tied=False)
    normal, lattice, other = Parameters(c), Parameters(c), Parameters(c)
    initialise(normal, 1)
    initialise(lattice, 1, "lattice")
    initialise(other, 2, "lattice")
    name = "model.embed_tokens.weight"
    assert np.array_equal(lattice.named[name], embedding(500, 64))
    assert np.array_equal(other.named[name], embedding(500, 64))
    for n, view in normal.named.items():
        assert np.array_equal(view, lattice.named[n]) == (n != name), n
    assert not np.array_equal(other.flat, lattice.flat)


# --- the same bits --------------------------------------------------------------------------------


def bits() -> dict[str, str]:
    """Hashes of an embedding and of tables."""
    cosine, sine = lattice_tables(700, 130)
    found = {"embedding": embedding(1003, 250).tobytes(), "tables": (cosine + 2 * sine).tobytes()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def test_the_bits_are_those_of_every_machine() -> None:
    assert bits() == BITS


def test_numpy_without_its_vector_instructions_gives_the_same_bits() -> None:
    """Those of the oldest CPU that it runs on."""
    child = subprocess.run(
        [sys.executable, "-c", "import test_lattice_init as t; print(t.bits())"],
        env=os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__),
                          "PYTHONPATH": os.path.dirname(__file__), "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert child.stdout.strip() == str(BITS)


# --- cosine and sine, rotary tables ---------------------------------------------------------------


def test_cosine_and_sine_of_turns() -> None:
    rng = np.random.default_rng(0)
    eighths = np.arange(8, dtype=np.uint64) << np.uint64(61)
    near = np.concatenate([eighths + np.uint64(1), eighths - np.uint64(1)])
    turns = np.concatenate([eighths, near, rng.integers(0, 2**64, 1000, np.uint64)])
    cosine, sine = cosine_sine(turns)
    with mpmath.workdps(40):
        for u, c, s in zip(turns.tolist(), cosine.tolist(), sine.tolist(), strict=True):
            angle = 2 * mpmath.pi * u / 2**64
            assert abs(c - mpmath.cos(angle)) <= 2**-52
            assert abs(s - mpmath.sin(angle)) <= 2**-52
    assert cosine[:8:2].tolist() == [1, 0, -1, 0] and sine[:8:2].tolist() == [0, 1, 0, -1]


def test_fractions_of_the_golden_ratio() -> None:
    with mpmath.workdps(120):
        for times, over in ((1, 1), (89 * 3**42, 1), (89, 3**8), (3, 3)):
            want = mpmath.floor(mpmath.frac(times * mpmath.phi / over) * mpmath.mpf(2) ** 64)
            assert golden(times, over) == int(want)


@pytest.mark.parametrize("Dh", [2, 6, 64, 130])
def test_rotary_tables_are_cosine_and_sine(Dh: int) -> None:
    cosine, sine = lattice_tables(700, Dh)
    angle = ref.rotary_angles(700, Dh, None)
    assert cosine.shape == sine.shape == angle.shape and cosine.dtype == sine.dtype == np.float32
    assert np.all(abs(cosine - np.cos(angle)) <= U)
    assert np.all(abs(sine - np.sin(angle)) <= U)
    shorter = lattice_tables(17, Dh)
    assert np.array_equal(shorter[0], cosine[:17]) and np.array_equal(shorter[1], sine[:17])
    model = model_tables(ModelConfig(9, 2 * Dh, 1, 2, 1, 4, 700, rope="lattice"), 700)
    assert np.array_equal(model[0], cosine) and np.array_equal(model[1], sine)


def test_a_position_far_away_is_as_exact_as_the_first() -> None:
    cosine, _ = lattice_tables(100_000, 64)
    with mpmath.workdps(40):
        for at, i in ((99_999, 0), (99_998, 31), (65_537, 20)):
            turns = ref.DIMENSIONAL[i % 24] * mpmath.phi / mpmath.mpf(3) ** (1 + i % 8)
            assert abs(float(cosine[at, i] - mpmath.cos(2 * mpmath.pi * turns * at))) <= U


def test_scores_depend_on_the_distance_alone() -> None:
    """Of a query at m and a key at n: the same for all m - n, and not for others."""
    rng, T, half = np.random.default_rng(0), 50, 24
    cosine, sine = (t.astype(np.float64) for t in lattice_tables(T, 2 * half))
    q, k = (rng.standard_normal(half) + 1j * rng.standard_normal(half) for _ in "qk")
    turned = cosine + 1j * sine
    scores = ((q * turned) @ (k * turned).conj().T).real
    size = float(abs(q) @ abs(k))
    for distance in range(-T + 1, T):
        along = np.diagonal(scores, distance)
        assert np.ptp(along) <= 8 * U * size
    assert np.ptp(scores) > 0.1 * size


def test_there_are_24_frequencies() -> None:
    cosine, sine = lattice_tables(3, 128)
    assert np.array_equal(cosine[:, 24:48], cosine[:, :24])
    assert len({(c, s) for c, s in zip(cosine[1].tolist(), sine[1].tolist(), strict=True)}) == 24
