"""What a team is not meant for ends in an error or in the right numbers, never in a wild write."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from crystalline import _native
from crystalline._native import Team
from crystalline.decoder.memory import arena

HUGE = 2**63 - 1


VALUES = np.random.default_rng(0).standard_normal((2, 128, 128), np.float32)


def product(team: Team) -> bytes:
    y = np.empty((128, 128), np.float32)
    team.matmul(y, *VALUES)
    return y.tobytes()


def test_a_forked_child_writes_to_memory_of_its_own() -> None:
    block = arena(1000)
    child = os.fork()
    if child == 0:
        block[:] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert not block.any()


def test_parent_and_child_compute_at_the_same_time() -> None:
    team = Team(2)
    want = product(team)
    child = os.fork()
    if child == 0:
        os._exit(0 if all(product(team) == want for _ in range(300)) else 1)
    right = all(product(team) == want for _ in range(300))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert right


def test_two_threads_on_one_team_are_told() -> None:
    team, said, done = Team(2), [], []

    def work() -> None:
        for _ in range(300):
            try:
                product(team)
                done.append(1)
            except RuntimeError as error:
                said.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert len(done) + len(said) == 600 and done
    assert all("at work for another thread" in words for words in said)
    assert product(team) == product(Team(1))


def test_a_second_caller_is_told_while_the_first_gets_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team, asked = Team(2), []

    def meanwhile(count: int) -> np.ndarray:
        asked.append(count)
        with pytest.raises(RuntimeError, match="at work for another thread"):
            product(team)
        return arena(count)

    monkeypatch.setattr(_native, "arena", meanwhile)
    got = product(team)
    assert len(asked) == 1
    monkeypatch.setattr(_native, "arena", arena)
    assert got == product(team) == product(Team(1))


def test_a_team_that_got_no_memory_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(count: int) -> np.ndarray:
        raise MemoryError(count)

    team = Team(2)
    monkeypatch.setattr(_native, "arena", none_left)
    for _ in range(2):
        with pytest.raises(MemoryError):
            product(team)
    monkeypatch.setattr(_native, "arena", arena)
    assert product(team) == product(Team(1))


def test_the_callers_rounding_mode_changes_nothing_and_stays() -> None:
    libm = ctypes.CDLL("libm.so.6")
    upward = 0x800  # FE_UPWARD on x86
    team = Team(2)
    want = product(team)
    before = libm.fegetround()
    libm.fesetround(upward)
    try:
        got = {product(team) for _ in range(50)}
        assert libm.fegetround() == upward
    finally:
        libm.fesetround(before)
    assert got == {want}


SCARCE = """
import resource, numpy as np
from crystalline._native import Team
team = Team(1)
small = [np.ones((8, 8), np.float32) for _ in range(3)]
team.matmul(*small)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
x = np.ones((1, 4096), np.float32)
w = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (1, 1), (4, 4))
try:
    team.matmul(np.ones((1, 4096), np.float32), x, np.empty((4096, 4096), np.float32))
except (OSError, MemoryError):
    pass
else:
    raise SystemExit("the large product should not have fitted")
team.matmul(*small)
assert (small[0] == 8).all()
"""


def test_a_team_works_on_after_memory_ran_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCARCE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_sizes_that_overflow_are_refused() -> None:
    team, one = Team(1), np.zeros((4, 24), np.float32)
    table = np.zeros((4, 4), np.float32)
    keys, values = np.zeros((1, 8, 64), np.float32), np.zeros((1, 64, 32), np.float32)
    out, lse = np.zeros((4, 8), np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="outside the cache's 64"):
        team.attention_cached(out, one, keys, values, 1, HUGE)
    with pytest.raises(ValueError, match="past the 4 positions"):
        team.rope(one, table, table, 2, 4, HUGE - 1)
    for heads in (2**61, 2**61 + 1):
        with pytest.raises(ValueError, match="rope"):
            team.rope(one, table, table, heads, 4)
    with pytest.raises(ValueError, match="are more than qkv's"):
        team.attention(out, lse, one, 4, (2**64 + 2) // 3 // 2, 1)
    with pytest.raises(ValueError, match="groups is 1"):
        team.work_floats(np.zeros(1, np.int64), 1, 2, 1, 1, 2, 300)


def test_work_space_may_not_be_the_ids() -> None:
    ids, index = np.zeros(8, np.int32), np.zeros(5, np.int64)
    groups = np.array([0] + [8] * 12, np.int64)
    dw, dx = np.zeros((4, 2), np.float32), np.zeros((8, 2), np.float32)
    with pytest.raises(ValueError, match="order overlaps ids"):
        Team(1).embedding_bwd(dw, dx, ids, groups, ids, index)
