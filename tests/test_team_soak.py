"""The team's C at work: random regions and arrangements, each task once, no data race.

CRYSTALLINE_TEAM_SOAK says how many times longer.
"""

from __future__ import annotations

import json
import os

import pytest
from c_drivers import compiled, run, sanitized

SOURCES = ["parallel.c", "arrange.c", "system.c"]
LONGER = int(os.environ.get("CRYSTALLINE_TEAM_SOAK", "1"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return compiled("team_soak", SOURCES, tmp_path_factory.mktemp("soak"), "-O3")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return sanitized("team_soak", SOURCES, tmp_path_factory.mktemp("tsan"))


def soak(command: list[str], threads: int, regions: int, *pin: str) -> None:
    done = run([*command, str(threads), str(regions * LONGER), "12", *pin])
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    print(done.stdout.strip())
    told = json.loads(done.stdout)
    assert told["wrong"] == 0 and told["tasks"] > regions
    assert (told["stolen"] > 0) == (threads > 1)


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 48])
def test_every_task_runs_once(plain: list[str], threads: int) -> None:
    soak(plain, threads, 4000)


def test_every_task_runs_once_where_all_workers_share_a_cpu(plain: list[str]) -> None:
    soak(plain, 5, 1000, "pin")


@pytest.mark.parametrize("threads", [2, 5])
def test_no_data_race(checked: list[str], threads: int) -> None:
    soak(checked, threads, 1000)


def test_the_driver_says_what_it_wants(plain: list[str]) -> None:
    done = run([*plain, "0", "5", "1"])
    assert done.returncode == 2 and "usage" in done.stderr
