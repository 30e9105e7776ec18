"""The team: arguments that do not fit, CPU quotas, forks, threads, and what a caller keeps."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from case import Case, draw, poison
from kernel_cases import BUILDERS

from crystalline._native import ISAS, Team, available_isas, quota_cpus, usable_cpus
from crystalline.errors import UsageError

SMALL = {
    "matmul": (2, 3, 4), "rows": (2, 3), "swiglu": (2, 3), "attention": (1, 3, 2, 1, 4),
    "embedding": (3, 4, 5), "cross_entropy": (3, 4, 5), "flat": (5,), "few": (2, 3, 4),
    "tall": (2, 3, 4), "muon": (2, 3),
}  # fmt: skip
# Where one more is a larger problem rather than a mismatch.
MAY_GROW = {
    ("rope", "x", 0), ("rope", "x", 1), ("embedding", "w", 0), ("head losses", "w", 0),
    ("embedding_weight", "w", 0), ("squared_norm", "x", 0), ("squared_norm", "total", 0),
    ("matmul_packed", "w", 0),
    ("matmul_packed", "y", 1), ("head_sampled", "samples", 1), ("adamw_rows", "rows", 0),
    ("squared_norm_rows", "rows", 0), ("squared_norm_rows", "x", 0),
    ("squared_norm_rows", "x", 1), ("squared_norm_rows", "total", 0),
    ("adamw_rest_rows", "rows", 0), ("adamw_rest_rows", "past", 0),
    ("matmul_packed", "y", 1), ("softmax in place", "y", 0), ("softmax in place", "y", 1),
    ("log_softmax in place", "y", 0), ("log_softmax in place", "y", 1), ("logsumexp", "x", 1),
    ("cross_entropy", "z", 1), ("cross_entropy_bwd in place", "dz", 1), ("rope_at", "x", 1),
    ("muon_step", "coefficients", 0),
}  # fmt: skip


def small_case(op: str) -> Case:
    build, grid = BUILDERS[op]
    return build(SMALL[grid])


def method(op: str) -> str:
    return re.split(r"[ +]", op)[0]


def run_python(code: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run code beside the tests in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip


# --- Arguments.


@pytest.mark.parametrize("op", BUILDERS)
def test_an_array_one_too_long_is_refused_with_both_sizes(op: str) -> None:
    c = small_case(op)
    for name, given in c.arrays().items():
        for axis in range(given.ndim):
            if {(o, name, axis) for o in (op, method(op), op.rstrip("+"))} & MAY_GROW:
                continue
            a = c.arrays()
            a[name] = np.pad(given, [(0, int(i == axis)) for i in range(given.ndim)])
            with pytest.raises(ValueError, match=rf"^(pack_weight|{method(op)}): ") as error:
                c.run(Team(1), a)
            sizes = set(re.findall(r"\d+", str(error.value)))
            assert len(sizes) >= 2, f"{name}, axis {axis}: {error.value}"


@pytest.mark.parametrize("op", BUILDERS)
def test_other_numbers_and_other_layouts_are_refused(op: str) -> None:
    c = small_case(op)
    for name, given in c.arrays().items():
        if name == "total":  # the test's own
            continue
        wrong = np.float64 if given.dtype == np.float32 else np.float32
        for other in (given.astype(wrong), np.repeat(given, 2, axis=-1)[..., ::2]):
            if other.flags.c_contiguous and other.dtype == given.dtype:
                continue
            a = c.arrays()
            a[name] = other
            with pytest.raises(ValueError, match=r"contiguous|dtype mismatch"):
                c.run(Team(1), a)
    for name in c.writes.keys() - {"total"}:
        a = c.arrays()
        a[name].flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            c.run(Team(1), a)


BAD_GROUPS = [[1, *[3] * 12], [0, *[2] * 12], [0, *[4] * 12], [0, 2, 1, *[3] * 10], [-1, *[3] * 12]]


@pytest.mark.parametrize(
    "op",
    ["matmul_dw", "rmsnorm_bwd", "embedding_bwd", "head", "head losses", "head_sampled"],
)
@pytest.mark.parametrize("groups", BAD_GROUPS)
def test_groups_that_do_not_rise_to_the_rows_are_refused(op: str, groups: list[int]) -> None:
    build, grid = BUILDERS[op]
    c = build((3, *SMALL[grid][1:]))
    with pytest.raises(ValueError, match=f"^{method(op)}: .*group"):
        c.run(Team(1), c.arrays() | {"groups": np.array(groups, np.int64)})


@pytest.mark.parametrize(
    ("op", "name", "bad"),
    [
        ("embedding", "ids", 4), ("embedding", "ids", -1), ("embedding_bwd", "ids", 4),
        ("embedding_bwd", "ids", -1), ("head", "targets", 5), ("head", "targets", -2),
        ("head_sampled", "targets", 5), ("head_sampled", "targets", -2),
    ],
)  # fmt: skip
def test_a_token_outside_the_vocabulary_is_refused(op: str, name: str, bad: int) -> None:
    c = small_case(op)
    ids = c.reads[name].copy()
    ids[-1] = bad
    with pytest.raises(ValueError, match=f"^{op}: .*outside the vocabulary"):
        c.run(Team(1), c.arrays() | {name: ids})


def test_positions_and_heads_that_do_not_fit_are_refused() -> None:
    team, x, table = Team(1), poison(4, 24), np.zeros((8, 2), np.float32)
    with pytest.raises(ValueError, match=r"rope: position 5 \+ 4 rows is past the 8 positions"):
        team.rope(x, table, table, 2, 4, position=5)
    for heads, T, position in ((7, 4, 0), (0, 4, 0), (2, 0, 0), (2, 4, -1)):
        with pytest.raises(ValueError, match=r"^rope: "):
            team.rope(x, table, table, heads, T, position=position)
    out, lse = poison(4, 8), poison(8)
    for T, H, K in ((0, 2, 1), (4, 0, 1), (4, 2, 0), (4, 3, 2), (3, 2, 1), (4, 5, 1)):
        with pytest.raises(ValueError, match=r"^attention: "):
            team.attention(out, lse, x[:, :16].copy(), T, H, K)
    keys, values = np.zeros((1, 4, 64), np.float32), np.zeros((1, 64, 32), np.float32)
    for position in (-1, 61):
        with pytest.raises(ValueError, match=r"^attention_cached: "):
            team.attention_cached(out, x[:, :16].copy(), keys, values, 2, position)


EMPTY = """
import test_team as t
for op in t.BUILDERS:
    c = t.small_case(op)
    for name, given in c.arrays().items():
        for axis in range(given.ndim):
            print(op, name, axis, flush=True)
            try:
                c.run(t.Team(2), c.arrays() | {name: given.take([], axis)})
            except (ValueError, IndexError):
                pass
"""


def test_an_empty_array_never_kills_the_process() -> None:
    done = run_python(EMPTY)
    assert done.returncode == 0, f"status {done.returncode} in {done.stdout.splitlines()[-1:]}"


@pytest.mark.parametrize("threads", [0, -1, 4097])
def test_a_team_has_1_to_4096_threads(threads: int) -> None:
    with pytest.raises(UsageError, match=f"threads is {threads}, but must be 1 to 4096"):
        Team(threads)


@pytest.mark.parametrize("isa", ["", "sse9", "AVX2", "avx"])
def test_an_unknown_instruction_set_is_refused_and_the_others_named(isa: str) -> None:
    with pytest.raises(UsageError, match=f"{isa!r} cannot run .* {', '.join(available_isas())}"):
        Team(1, isa)


def test_the_best_instruction_set_is_chosen() -> None:
    assert available_isas()[0] == "portable"
    assert Team(1).isa == available_isas()[-1]
    assert [Team(1, isa).isa for isa in available_isas()] == list(available_isas())
    assert set(available_isas()) <= set(ISAS)


def test_work_space_grows_to_the_largest_call_and_stays() -> None:
    team, seen = Team(2), []
    for shape in ((20, 5, 7), (37, 300, 65), (20, 5, 7)):
        BUILDERS["matmul"][0](shape).outputs(team)
        seen.append(team.work_bytes)
    assert 0 < seen[0] < seen[1] == seen[2]


# --- CPUs.


def tree(root: Path, files: dict[str, str]) -> str:
    """Write files below root, as /proc and /sys would show them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


V1 = "sys/fs/cgroup/cpu/"
V1_GROUPS = "12:memory:/a\n4:cpu,cpuacct:/a\n3:cpuset:/a\n1:name=systemd:/a\n"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 0),
        ({"proc/self/cgroup": "0::/a\n"}, 0),
        # Version 2: the least quota on the whole path counts, also where folders are hidden.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, 0),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "20000 10000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b/c\n", "sys/fs/cgroup/a/b/c/cpu.max": "max 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "700000 100000\n",
          "sys/fs/cgroup/a/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n",
          "sys/fs/cgroup/a/cpu.max": "400000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/hidden/by/a/namespace\n",
          "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": ""}, 0),
        ({"proc/self/cgroup": "nonsense\n\n::\n"}, 0),
        # Version 1: two files, and a name for the controllers.
        ({"proc/self/cgroup": V1_GROUPS, V1 + "a/cpu.cfs_quota_us": "250000\n",
          V1 + "a/cpu.cfs_period_us": "100000\n"}, 3),
        ({"proc/self/cgroup": V1_GROUPS, V1 + "a/cpu.cfs_quota_us": "-1\n",
          V1 + "a/cpu.cfs_period_us": "100000\n"}, 0),
        ({"proc/self/cgroup": V1_GROUPS, V1 + "a/cpu.cfs_quota_us": "-1\n",
          V1 + "a/cpu.cfs_period_us": "100000\n", V1 + "cpu.cfs_quota_us": "50000\n",
          V1 + "cpu.cfs_period_us": "100000\n"}, 1),
        ({"proc/self/cgroup": "3:cpuset:/a\n", V1 + "a/cpu.cfs_quota_us": "100000\n",
          V1 + "a/cpu.cfs_period_us": "100000\n"}, 0),
    ],
)  # fmt: skip
def test_cgroup_quotas(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    assert quota_cpus(tree(tmp_path, files)) == cpus


def test_usable_cpus_are_no_more_than_the_affinity_mask_allows() -> None:
    code = (
        "import os; from crystalline._native import usable_cpus as u\n"
        "all = os.sched_getaffinity(0); print(u(), len(all))\n"
        "os.sched_setaffinity(0, {min(all)}); print(u())"
    )
    usable, mask, one = map(int, run_python(code).stdout.split())
    assert 1 <= usable <= mask and usable == usable_cpus() and one == 1


def test_shared_teams_follow_the_affinity_mask() -> None:
    code = (
        "import os; from crystalline.team import shared_team\n"
        "def threads():\n"
        "    with shared_team() as team: return team.threads\n"
        "all = os.sched_getaffinity(0); before = threads()\n"
        "os.sched_setaffinity(0, {min(all)}); one = threads()\n"
        "os.sched_setaffinity(0, all); print(before, one, threads())"
    )
    before, one, after = map(int, run_python(code).stdout.split())
    assert before == after == usable_cpus() and one == 1


# --- What the caller keeps.


def test_denormal_numbers_and_affinity_stay_as_they_were() -> None:
    """Flush-to-zero or a pinned thread would change what other code of the process computes."""
    code = """
import os, threading, numpy as np
before = os.sched_getaffinity(0)
def alive():
    assert 5e-324 * 1.0 != 0 and np.float32(1e-40) * np.float32(1) != 0
    assert np.all(np.full(99, 1e-40, np.float32) * np.float32(0.5) != 0)
from crystalline._native import ISAS, Team, available_isas
alive()
import test_team as t
for isa in available_isas():
    for threads in (1, 2, 12):
        team = Team(threads, isa)
        for op in t.BUILDERS:
            t.small_case(op).outputs(team)
            alive()
thread = threading.Thread(target=alive); thread.start(); thread.join()
masks = [os.sched_getaffinity(int(task)) for task in os.listdir('/proc/self/task')]
assert all(mask == before for mask in masks), masks
print('kept', end='')
"""
    done = run_python(code)
    assert done.stdout == "kept", done.stderr


def test_denormal_inputs_count_as_zero_on_any_thread() -> None:
    """Team threads flush: the same everywhere, or the bits would depend on who does the work."""
    x, w, want = np.full((64, 64), 1e-40, np.float32), draw(64, 64), np.zeros((64, 64))
    for isa in available_isas():
        for threads in (1, 3):
            y = poison(64, 64)
            Team(threads, isa).matmul(y, x, w)
            assert np.array_equal(y, want)


# --- Other threads and processes.

FORK = """
import os, numpy as np, test_team as t
c = t.BUILDERS["matmul"][0]((37, 33, 65))
old = t.Team(2)
def bits(team): return c.outputs(team)["y"].tobytes()
want = bits(old)
child = os.fork()
if child == 0:
    ok = bits(old) == bits(t.Team(3)) == bits(old) == want
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if bits(old) == want else 4)
    os._exit(3 if not ok else os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert status == 0, status
assert bits(old) == want
print("done", end="")
"""


def test_a_fork_after_a_team_has_run_finishes_with_the_same_bits() -> None:
    done = run_python(FORK, timeout=60)
    assert done.stdout == "done", done.stderr


def test_a_team_that_is_gone_leaves_no_thread() -> None:
    code = """
import os, time, test_team as t
c = t.small_case("matmul")
before = len(os.listdir('/proc/self/task'))
for threads in (2, 5, 12, 3):
    team = t.Team(threads)
    c.outputs(team)
    del team
    # A thread that has been joined may stand in the system's list for a moment longer.
    until = time.monotonic() + 20
    while len(os.listdir('/proc/self/task')) != before:
        assert time.monotonic() < until
        time.sleep(0.001)
t.Team(4)
print("none", end="")
"""
    done = run_python(code, timeout=60)
    assert done.stdout == "none", done.stderr


@pytest.mark.parametrize("first", ["torch", "crystalline._native"])
def test_torch_in_the_same_process(first: str) -> None:
    code = f"import {first}\nimport crystalline._native, torch\n" + """
import numpy as np
torch.set_num_threads(2)
from case import draw, poison
x, w = draw(200, 300), draw(100, 300, seed=1)
for _ in range(3):
    y = poison(200, 100)
    crystalline._native.Team(2).matmul(y, x, w)
    z = (torch.tensor(x) @ torch.tensor(w).T).numpy()
    assert np.allclose(y, z, atol=1e-3), abs(y - z).max()
print("agree", end="")
"""
    done = run_python(code)
    assert done.stdout == "agree", done.stderr


def test_two_callers_with_a_team_each_at_once() -> None:
    cases = [BUILDERS[op][0](shape) for op, shape in (
        ("matmul_dw", (37, 103, 65)), ("attention", (3, 65, 6, 3, 18)), ("head", (37, 33, 203)),
    )]  # fmt: skip
    want = [c.outputs(Team(1)) for c in cases]
    wrong: list[Any] = []

    def call(threads: int) -> None:
        team = Team(threads)
        for _ in range(5):
            for c, expected in zip(cases, want, strict=True):
                got = c.outputs(team)
                wrong.extend(n for n in got if got[n].tobytes() != expected[n].tobytes())
        wrong.append(threads)  # shows that the caller came to its end

    callers = [threading.Thread(target=call, args=(threads,)) for threads in (2, 3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert sorted(map(str, wrong)) == ["2", "3"]
