"""Where a team's threads run, what is left of them in a fork, and that they never wait for ever.

Each script has a process of its own, which is killed when it hangs.
"""

from __future__ import annotations

import os
import threading

import pytest
from test_team import run_python

from crystalline._native import Team, pin_thread

LIMIT = 100.0  # seconds until a script counts as hung
BEGIN = """
import os, numpy as np
from crystalline._native import Team, pin_thread
from test_arrange import WANT, outputs, twelve, update
CPUS = sorted(os.sched_getaffinity(0))
ALL = set(CPUS)
def threads():
    return {int(task): os.sched_getaffinity(int(task)) for task in os.listdir('/proc/self/task')}
def started(before):
    return [mask for task, mask in threads().items() if task not in before]
def settled(before, count, masks):
    # A worker pins itself after it was started, at the latest before it works.
    import time
    for _ in range(500):
        got = started(before)
        if len(got) == count and sorted(map(sorted, got)) == sorted(map(sorted, masks)):
            return
        time.sleep(0.01)
    raise SystemExit(f"{got} are not {masks}")
before = set(threads())
"""


def well(code: str) -> None:
    done = run_python(BEGIN + code + "\nprint('well', end='')", timeout=LIMIT)
    assert (done.stdout, done.returncode) == ("well", 0), done.stdout + done.stderr


@pytest.mark.parametrize("last_first", [False, True])
def test_pinned_workers_stay_on_their_cpus_and_the_caller_is_left_where_it_is(
    last_first: bool,
) -> None:
    well(
        f"""
cpus = CPUS[::-1] if {last_first} else CPUS
team = Team(len(cpus) + 2, cpus=[*cpus, cpus[0], cpus[-1]])
assert team.cpus == (*cpus, cpus[0], cpus[-1])
assert outputs(team) == WANT
settled(before, team.threads - 1, [{{c}} for c in team.cpus[1:]])
assert os.sched_getaffinity(0) == ALL
for n in range(50):
    update(team)
    assert os.sched_getaffinity(0) == ALL
"""
    )


def test_unpinned_workers_may_run_anywhere() -> None:
    well("""
team = Team(4)
assert team.cpus is None and outputs(team) == WANT
settled(before, 3, [ALL] * 3)
""")


def test_a_cpu_that_there_is_not_keeps_nobody_from_working() -> None:
    well("""
team = Team(3, cpus=[CPUS[0], 1 << 14, -1])
assert outputs(team) == WANT
settled(before, 2, [ALL] * 2)
""")


def test_a_cpu_taken_away_from_a_pinned_worker() -> None:
    """A mask laid on the whole process from outside wins; the work goes on."""
    well("""
team = Team(3, cpus=[CPUS[-1]] * 3)
update(team, 10)
settled(before, 2, [{CPUS[-1]}] * 2)  # both have come to life, and pinned themselves
for task in threads():
    os.sched_setaffinity(task, {CPUS[0]})
assert outputs(team) == WANT
settled(before, 2, [{CPUS[0]}] * 2)
""")


@pytest.mark.parametrize("cpus", [[], [0], [0, 0, 0]])
def test_cpus_for_other_threads_are_refused(cpus: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"^team: .*{len(cpus)}.* 2"):
        Team(2, cpus=cpus)


def test_pinning_the_calling_thread() -> None:
    """On a thread of its own, which may be spoilt."""
    own, seen = sorted(os.sched_getaffinity(0)), []

    def pin() -> None:
        seen.append(pin_thread(own[-1]) and os.sched_getaffinity(0) == {own[-1]})
        seen.extend(pin_thread(cpu) for cpu in (-1, 1 << 14, 2**31 - 1))
        seen.append(os.sched_getaffinity(0) == {own[-1]})

    thread = threading.Thread(target=pin)
    thread.start()
    thread.join()
    assert seen == [True, False, False, False, True]
    assert sorted(os.sched_getaffinity(0)) == own


@pytest.mark.parametrize("steal", [False, True])
def test_arrangement_counters_and_pins_survive_a_fork(steal: bool) -> None:
    well(
        f"""
team = Team(3, cpus=[CPUS[0]] * 3)
team.arrange(*twelve(3, [2] * 5 + [1] * 5 + [0] * 2), {steal})
update(team, 2)
counted = team.statistics()
child = os.fork()
if child == 0:
    try:
        before = set(threads())
        assert len(before) == 1
        now = team.statistics()
        assert all(np.array_equal(now[name], counted[name]) for name in now)
        assert outputs(team) == WANT
        settled(before, 2, [{{CPUS[0]}}] * 2)
        start = team.statistics()["threads"]
        update(team)
        tasks = (team.statistics()["threads"] - start)[:, 0].tolist()
        assert sum(tasks) == 144 and ({steal} or tasks == [24, 60, 60]), tasks
        assert os.sched_getaffinity(0) == ALL
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert outputs(team) == WANT
start = team.statistics()["threads"]
update(team)
tasks = (team.statistics()["threads"] - start)[:, 0].tolist()
assert sum(tasks) == 144 and ({steal} or tasks == [24, 60, 60]), tasks
"""
    )


def test_a_child_may_arrange_what_the_parent_has_not() -> None:
    well("""
team = Team(2)
update(team)
child = os.fork()
if child == 0:
    team.arrange(*twelve(2, [1] * 12), False)
    update(team)
    os._exit(0 if outputs(team) == WANT else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert outputs(team) == WANT
""")


@pytest.mark.parametrize("cpus", ["None", "[CPUS[0]] * 9", "(CPUS * 9)[:9]"])
def test_more_threads_than_cpus_without_stealing_never_hang(cpus: str) -> None:
    """Every worker has to come to every region, and they have to share the CPUs."""
    well(
        f"""
team = Team(9, cpus={cpus})
team.arrange(*twelve(9), False)
assert outputs(team) == WANT
for n in range(1500):
    update(team)
    if n % 100 == 0:
        team.arrange(*twelve(9), n % 200 == 0)
assert outputs(team) == WANT
"""
    )


def test_a_process_pinned_to_one_cpu_after_its_team_was_made() -> None:
    """The team believes that it may spin; without stealing its workers still come."""
    well("""
team = Team(len(CPUS))
team.arrange(*twelve(len(CPUS)), False)
for task in threads():
    os.sched_setaffinity(task, {CPUS[0]})
for n in range(300):
    update(team)
assert outputs(team) == WANT
""")
