"""exp, log and exp2 against mpmath: within two units in the last place, and the special values."""

from __future__ import annotations

import subprocess

import mpmath
import numpy as np
import pytest
from c_drivers import compiled
from case import Array, poison

from crystalline._native import ISAS, Team, available_isas

TINY, LARGEST = np.finfo(np.float32).tiny, np.finfo(np.float32).max
INF, NAN = np.inf, np.nan


@pytest.fixture(params=ISAS)
def team(request: pytest.FixtureRequest) -> Team:
    if request.param not in available_isas():
        pytest.skip(f"this CPU cannot run {request.param}, only {', '.join(available_isas())}")
    return Team(1, request.param)


def run(team: Team, name: str, x: Array) -> Array:
    """exp or log of x(n)."""
    y = poison(*x.shape)
    getattr(team, name)(y, x)
    return y


def worst_ulp(got: Array, x: Array, name: str) -> tuple[float, float]:
    """The largest distance from the true value, in units of its last place, and where it is."""
    with mpmath.workdps(40):
        true = [getattr(mpmath, name)(mpmath.mpf(float(a))) for a in x]
        ulp = np.spacing(abs(np.array([float(t) for t in true])).astype(np.float32))
        errors = [abs(float(float(g) - t)) / u for g, t, u in zip(got, true, ulp, strict=True)]
    at = int(np.argmax(errors))
    return float(errors[at]), float(x[at])


def exp_arguments() -> Array:
    """From where the result is the least normal number to where it is the largest, and near 0."""
    rng = np.random.default_rng(0)
    small = rng.choice([-1, 1], 400) * 10.0 ** rng.uniform(-12, 0, 400)
    halves = (np.arange(-120, 128) + 0.5) * np.log(2)  # where the reduced argument is largest
    ends = [-87.33654, -87.3, 88.7, 88.72283, 0.0, -0.0]
    x = np.concatenate([rng.uniform(-87.3, 88.7, 1500), small, halves, ends])
    return x.astype(np.float32)


def log_arguments() -> Array:
    """All exponents, the neighbourhood of 1, where the result is small, and of sqrt 2."""
    rng = np.random.default_rng(1)
    wide = np.exp2(rng.uniform(-126, 128, 1500)).astype(np.float32)
    steps = np.arange(-200, 200, dtype=np.int32)
    near = [(np.float32(c).view(np.int32) + steps).view(np.float32) for c in (1, 2, 0.5, 2**0.5)]
    around = rng.uniform(0.5, 2, 500).astype(np.float32)
    return np.concatenate([wide, *near, around, np.array([TINY, LARGEST], np.float32)])


def test_exp_is_within_two_ulp(team: Team) -> None:
    x = exp_arguments()
    worst, at = worst_ulp(run(team, "exp", x), x, "exp")
    assert worst <= 2, f"{worst:.2f} ulp at {at!r}"


def exp2_arguments() -> Array:
    """Of normal results: all whole numbers, all halves, where the reduced argument is largest."""
    rng = np.random.default_rng(2)
    small = rng.choice([-1, 1], 400) * 10.0 ** rng.uniform(-12, 0, 400)
    return np.concatenate(
        [rng.uniform(-126, 127, 1500), small, np.arange(-126, 127.5, 0.5)]
    ).astype(np.float32)


def test_exp2_is_within_two_ulp(team: Team) -> None:
    x = exp2_arguments()
    with mpmath.workdps(40):
        true = [mpmath.mpf(2) ** mpmath.mpf(float(a)) for a in x]
        errors = [
            abs(float(float(g) - t)) / np.spacing(np.float32(t))
            for g, t in zip(run(team, "exp2", x), true, strict=True)
        ]
    assert max(errors) <= 2, f"{max(errors):.2f} ulp at {x[int(np.argmax(errors))]!r}"


def test_log_is_within_two_ulp(team: Team) -> None:
    x = log_arguments()
    worst, at = worst_ulp(run(team, "log", x), x, "log")
    assert worst <= 2, f"{worst:.2f} ulp at {at!r}"


@pytest.mark.parametrize(
    ("name", "x", "want"),
    [
        ("exp", 0.0, 1.0), ("exp", -0.0, 1.0), ("exp", 1e-45, 1.0), ("exp", -1e-40, 1.0),
        ("exp", -INF, 0.0), ("exp", -LARGEST, 0.0), ("exp", -104.0, 0.0), ("exp", INF, INF),
        ("exp", LARGEST, INF), ("exp", 88.73, INF), ("exp", 89.0, INF), ("exp", NAN, NAN),
        ("log", 1.0, 0.0), ("log", INF, INF), ("log", NAN, NAN),
        ("exp2", 0.0, 1.0), ("exp2", -0.0, 1.0), ("exp2", -1e-40, 1.0), ("exp2", -INF, 0.0),
        ("exp2", -126.6, 0.0), ("exp2", -3e38, 0.0), ("exp2", 127.0, 2.0**127), ("exp2", NAN, NAN),
        ("log", 1.0, 0.0), ("log", INF, INF), ("log", NAN, NAN), ("log", 0.0, -INF),
        ("log", -0.0, -INF), ("log", 1e-45, -INF), ("log", -1e-45, -INF), ("log", -1.0, NAN),
        ("log", -LARGEST, NAN), ("log", -INF, NAN),
    ],
)  # fmt: skip
def test_special_values(name: str, x: float, want: float, team: Team) -> None:
    for n in (1, 16, 19):  # alone, in a whole vector, and in a tail
        got = run(team, name, np.full(n, x, np.float32))
        assert np.array_equal(got, np.full(n, want, np.float32), equal_nan=True)


def test_a_team_flushes_what_is_below_the_least_normal_number(team: Team) -> None:
    x = np.linspace(-104, -87.34, 500).astype(np.float32)
    assert np.all(run(team, "exp", x) == 0)
    assert np.all(run(team, "log", np.array([1e-45, 1e-40, TINY / 2], np.float32)) == -INF)


FLAGS = {
    "portable": (), "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
}  # fmt: skip


@pytest.fixture(scope="module", params=ISAS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The functions alone, without a team, whose threads flush small numbers to zero."""
    isa = request.param
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}, only {', '.join(available_isas())}")
    flags = (*FLAGS[isa], "-O1", "-ffp-contract=off", "-fno-math-errno", f"-DCRY_ISA_{isa}")
    folder = tmp_path_factory.mktemp(isa)
    return compiled("elementary", ["isa.c"], folder, *flags, f"-DTABLE=cry_kernels_{isa}")


def unflushed(program: list[str], name: str, x: Array) -> Array:
    done = subprocess.run([*program, name], input=x.tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32)


def test_small_numbers_are_within_two_ulp_too(program: list[str]) -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([np.linspace(-104, -86, 2000), rng.uniform(-104, -87, 1000)])
    x = x.astype(np.float32)
    got = unflushed(program, "exp", x)
    worst, at = worst_ulp(got, x, "exp")
    assert worst <= 2, f"{worst:.2f} ulp at {at!r}"
    assert np.all(np.diff(got[:2000]) >= 0) and got[x < -103.98].max() == 0
    x = np.concatenate([np.arange(1, 500), rng.integers(1, 2**23, 1000)]).astype(np.int32)
    x = x.view(np.float32)
    worst, at = worst_ulp(unflushed(program, "log", x), x, "log")
    assert worst <= 2, f"{worst:.2f} ulp at {at!r}"


def test_every_kind_of_float_has_the_bits_of_the_portable_kernel(program: list[str]) -> None:
    """One float in 4099 of all there are: both signs, every exponent, and what is no number."""
    x = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32).view(np.float32)
    plain = Team(1, "portable")
    normal = ~(abs(x) < TINY)  # a team takes these for zero
    for name in ("exp", "log"):
        got, want = unflushed(program, name, x), run(plain, name, x)
        kept = normal & ~(abs(got) < TINY)
        assert np.array_equal(got[kept].view(np.uint32), want[kept].view(np.uint32))


def test_the_same_bits_everywhere() -> None:
    teams = [Team(1, isa) for isa in available_isas()]
    named = (("exp", exp_arguments()), ("log", log_arguments()), ("exp2", exp2_arguments()))
    for name, x in named:
        first, *others = (run(team, name, x).tobytes() for team in teams)
        assert all(other == first for other in others)
