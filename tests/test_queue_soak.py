"""The message queue's C at work: many threads, nothing lost, doubled or out of order; no data race.

`make soak-queue` and `make tsan` do the same at length: CRYSTALLINE_QUEUE_SOAK says how many
messages all pairs of senders and receivers share.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess

import pytest
from queue_case import compile_driver

SOAK = int(os.environ.get("CRYSTALLINE_QUEUE_SOAK", "0"))
SHORT = [(p, c) for p in (1, 2, 4) for c in (1, 2, 4)]
LONG = [(1, 1), (1, 4), (4, 1), (2, 2), (4, 4), (1, 16), (16, 1), (3, 5), (8, 8), (16, 16)]
PAIRS = LONG if SOAK else SHORT


def soak(command: list[str], pair: tuple[int, int], messages: int, capacity: int) -> None:
    """Runs the driver, which checks everything itself."""
    words = [*command, *map(str, (*pair, messages, capacity))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600, check=False)
    print(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["wrong"] == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(compile_driver("queue_soak", tmp_path_factory.mktemp("soak"), "-O3"))]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The driver under the thread sanitizer, which cannot live with every layout of memory."""
    folder = tmp_path_factory.mktemp("tsan")
    empty = folder / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    flag, here = "-fsanitize=thread", ["setarch", platform.machine(), "-R"]
    built = subprocess.run(["gcc", flag, empty, "-o", folder / "empty"], check=False)
    if built.returncode:
        pytest.skip("this gcc has no thread sanitizer")
    program = str(compile_driver("queue_soak", folder, "-O1", "-g", flag))
    for prefix in ([], here if shutil.which("setarch") else []):
        if subprocess.run([*prefix, folder / "empty"], check=False).returncode == 0:
            return [*prefix, program]
    pytest.skip("the thread sanitizer does not start here, nor under setarch -R")


@pytest.mark.parametrize("pair", PAIRS)
def test_every_message_arrives_once_and_in_order(plain: list[str], pair: tuple[int, int]) -> None:
    soak(plain, pair, SOAK // len(PAIRS) if SOAK else 100_000, 1024)


@pytest.mark.parametrize("capacity", [2, 64])
def test_no_data_race(sanitized: list[str], capacity: int) -> None:
    for pair in [(1, 1), (3, 3)] if not SOAK else LONG:
        messages = SOAK // 200 if SOAK else 20_000
        soak(sanitized, pair, messages // (10 if capacity == 2 else 1), capacity)


def test_a_tiny_queue_between_many(plain: list[str]) -> None:
    soak(plain, (4, 4), 20_000, 2)


def test_the_driver_says_what_it_wants(plain: list[str]) -> None:
    done = subprocess.run([*plain, "1", "0", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage" in done.stderr
