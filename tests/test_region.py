"""Shared regions: whole versions only, what each mode allows, and errors that say what to do."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from scripts import BEGIN, LIMIT, READS, Script

import crystalline
from crystalline.errors import UsageError
from crystalline.spheres.region import (
    HEADER,
    PREFIX,
    SEGMENTS,
    RegionError,
    RegionMode,
    RegionTimeout,
    SharedRegion,
)

pytestmark = pytest.mark.usefixtures("segments")

COPY, WRITE = RegionMode.COPY_ON_WRITE, RegionMode.LOCKED_WRITE
SIZES = (1, 7, 8, 9, 63, 64, 65, 4095, 4097, 100_003)
KERNELS = Path(__file__).parents[1] / "src" / "crystalline" / "_kernels"


def values(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([size, seed]).integers(0, 256, size, np.uint8)


# --- the algorithm --------------------------------------------------------------------------------


@pytest.mark.parametrize("sanitizer", ["", "thread"])
@pytest.mark.parametrize("load", [(1, 2, 2000, 60_000), (3, 2, 400, 40_000), (8, 2, 1, 40_000)])
def test_every_snapshot_is_of_one_write(
    load: tuple[int, ...], sanitizer: str, tmp_path: Path
) -> None:
    program = tmp_path / "soak"
    # A sanitizer that is preloaded into Python is not the program's.
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    # ThreadSanitizer knows no fences; all shared words are atomics, which it does know.
    flags = ["-fsanitize=thread", "-Wno-tsan"] if sanitizer else []
    sources = [Path(__file__).with_name("c") / "region_soak.c", KERNELS / "region.c"]
    built = subprocess.run(
        ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", *flags,
         f"-I{KERNELS}", f"-I{KERNELS}/include", *map(str, sources), str(KERNELS / "system.c"),
         "-pthread", "-o", str(program)],
        capture_output=True, text=True, check=False, env=plain,
    )  # fmt: skip
    if sanitizer and "tsan" in built.stderr and "find" in built.stderr:
        pytest.skip("gcc has no libtsan here")
    assert built.returncode == 0, built.stderr
    writers, readers, words, snapshots = load
    if sanitizer:
        snapshots //= 10
    command = [str(program), str(writers), str(readers), str(words), str(snapshots)]
    for runner in ([], ["setarch", platform.machine(), "-R"]):
        ran = subprocess.run(
            [*runner, *command], capture_output=True, text=True, timeout=LIMIT, check=False,
            env=plain,
        )  # fmt: skip
        if "unexpected memory mapping" not in ran.stderr:
            break
    else:
        pytest.skip(f"ThreadSanitizer cannot map its memory here: {ran.stderr[:100]}")
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr


def test_two_reading_processes_see_whole_versions_in_order() -> None:
    with SharedRegion.create(10_001) as region:
        with Script(READS, region.name, 6000) as one, Script(READS, region.name, 6000) as two:
            assert one.line() == two.line() == "reads"
            while one.process.poll() is None or two.process.poll() is None:
                region.write(np.full(region.size, (region.version // 2 + 1) % 251, np.uint8))
            one.well()
            two.well()
        assert region.counters.reads > 2 and region.counters.writes == region.version // 2


def test_writers_of_several_processes_take_turns() -> None:
    count = BEGIN + """
for _ in range(500):
    with region.locked() as view:
        total = view.view(np.int64)
        total[0] += 1
        total[1] = total[0]
"""
    with SharedRegion.create(16) as region:
        scripts = [Script(count, region.name) for _ in range(3)]
        for script in scripts:
            script.well()
        assert region.read()[1].view(np.int64).tolist() == [1500, 1500]
        assert region.version == 3000


def test_a_second_writer_waits_and_is_told_for_whom() -> None:
    with SharedRegion.create(8) as region:
        other = SharedRegion.attach(region.name, WRITE)
        done = threading.Event()

        def write() -> None:
            other.write(b"12345678")
            done.set()

        with region.locked():
            with pytest.raises(RegionTimeout, match=f"process {os.getpid()} has written"):
                other.write(b"1", timeout=0.05)
            with pytest.raises(RegionTimeout, match=f"process {os.getpid()} has written"):
                other.read(timeout=0.25)
            thread = threading.Thread(target=write)
            thread.start()
            assert not done.wait(0.1)
        thread.join(LIMIT)
        assert region.read()[1].tobytes() == b"12345678"


def test_a_signal_is_answered_while_waiting() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with SharedRegion.create(8) as region:
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with region.locked():
                for wait in (region.read, lambda **o: region.write(b"1", **o)):
                    signal.setitimer(signal.ITIMER_REAL, 0.05)
                    with pytest.raises(KeyboardInterrupt):
                        wait(timeout=LIMIT)
        finally:
            signal.signal(signal.SIGALRM, before)
        region.write(b"12345678")
        assert region.read()[0] == 4


# --- reading and writing --------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(size: int) -> None:
    data = values(size)
    with SharedRegion.create(size) as region, SharedRegion.attach(region.name) as reader:
        assert reader.size == size and reader.version == 0
        assert not reader.read()[1].any()
        region.write(data)
        version, got = reader.read()
        assert version == 2 and np.array_equal(got, data)
        out = bytearray(size)
        assert reader.read(out)[0] == 2 and out == data.tobytes()
        short = np.empty(size // 2, np.uint8)
        reader.read(short)
        assert np.array_equal(short, data[: size // 2])
        head = 8 * (size // 16)
        region.write(data[:head], data[head:-1])  # the last byte stays
        assert np.array_equal(reader.read()[1], data)
        with region.locked() as view:
            view[...] = values(size, 1)
        assert np.array_equal(reader.read()[1], values(size, 1))
        assert region.counters == (6, 3, 0, 0)


def test_arrays_of_any_kind_are_bytes() -> None:
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    with SharedRegion.create(24) as region:
        region.write(data)
        out = np.empty((2, 3), np.float32)
        region.read(out)
        assert np.array_equal(out, data)


def test_a_copy_is_made_once_and_is_private() -> None:
    with SharedRegion.create(20) as region:
        region.write(b"a" * 20)
        with SharedRegion.attach(region.name, COPY) as copy:
            assert copy.read()[1].tobytes() == b"a" * 20 and region.counters.copies == 0
            copy.writable()[:2] = ord("b")
            copy.write(b"c" * 8, b"d")
            assert copy.writable() is copy.writable() and region.counters.copies == 1
            region.write(b"e" * 20)
            assert copy.read()[0] == 2
            assert copy.read()[1].tobytes() == b"c" * 8 + b"d" + b"a" * 11
            assert region.read()[1].tobytes() == b"e" * 20 and copy.version == 4


def test_an_exception_under_the_lock_ends_the_write() -> None:
    with SharedRegion.create(4) as region:
        region.write(b"aaaa")
        with pytest.raises(ZeroDivisionError), region.locked() as view:
            view[:2] = ord("b")
            raise ZeroDivisionError
        assert region.version == 4 and region.read()[1].tobytes() == b"bbaa"
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        with region.locked():
            region.close()  # the block still ends its write
        with SharedRegion.attach(region.name) as reader:
            assert reader.read()[0] == 6


# --- misuse ---------------------------------------------------------------------------------------


def test_each_mode_allows_what_it_says() -> None:
    with SharedRegion.create(8) as region:
        reader, copy = SharedRegion.attach(region.name), SharedRegion.attach(region.name, COPY)
        for refused, wanted in (
            (lambda: reader.write(b"1"), "read only; attach it locked write"),
            (reader.locked().__enter__, "read only; attach it locked write"),
            (reader.writable, "read only; attach it copy on write"),
            (copy.locked().__enter__, "copy on write; attach it locked write"),
            (region.writable, "locked write; attach it copy on write"),
            (reader.unlink, "only the creator of a region unlinks it"),
        ):
            with pytest.raises(UsageError, match=wanted):
                refused()
        assert reader._maps is not None
        with pytest.raises(TypeError):
            reader._maps[1][0] = 1  # the mapping itself forbids it
        assert region.version == 0


def test_a_closed_region_says_so() -> None:
    with SharedRegion.create(8) as region:
        reader = SharedRegion.attach(region.name)
        reader.close()
        reader.close()
        for refused in (reader.read, lambda: reader.version, lambda: reader.counters):
            with pytest.raises(RegionError, match="is closed; attach it again"):
                refused()


def test_wrong_arguments_are_named() -> None:
    with SharedRegion.create(16) as region:
        fixed = np.zeros(16, np.uint8)
        fixed.flags.writeable = False
        for refused, wanted in (
            (lambda: SharedRegion.create(0), "size is 0"),
            (lambda: SharedRegion.create(8, region.name), "of this name exists; choose another"),
            (lambda: SharedRegion.create(8, "a/b"), "without a slash"),
            (lambda: SharedRegion.attach("../x"), "without a slash"),
            (lambda: SharedRegion.attach(PREFIX + "absent"), "no region of this name"),
            (lambda: region.write(b"x" * 17), "data has 17 bytes, but the region has 16"),
            (lambda: region.write(b"x" * 16, b"x"), "data has 16 \\+ 1 bytes, but room is for 16"),
            (lambda: region.write(b"x", b"x"), "only the last part"),
            (lambda: region.write(np.zeros((4, 4), np.uint8).T[1:]), "not contiguous"),
            (lambda: region.read(bytearray(17)), "out has 17 bytes"),
            (lambda: region.read(fixed), "out cannot be written to"),
            (lambda: region.read(b"123"), "out cannot be written to"),
        ):
            with pytest.raises(UsageError, match=wanted):
                refused()
        assert region.version == 0


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (lambda path: os.truncate(path, HEADER + 8), "truncated, 8 bytes instead of 100"),
        (lambda path: os.truncate(path, 100), "is no region of crystalline"),
        (lambda path: os.truncate(path, 0), "is no region of crystalline"),
        (lambda path: path.write_bytes(b"x" * 9000), "is no region of crystalline"),
        (lambda path: path.write_bytes(path.read_bytes()[:8] + b"\2" * 9000), "another version"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be attached"),
    ],
)
def test_what_is_no_whole_region_is_not_attached(damage: object, wanted: str) -> None:
    with SharedRegion.create(100) as region:
        path = Path(SEGMENTS) / region.name
        region.close()
        damage(path)  # type: ignore[operator]
        try:
            with pytest.raises(UsageError, match=wanted):
                SharedRegion.attach(region.name)
        finally:
            if path.is_dir():
                path.rmdir()


def test_the_stub_names_what_the_module_holds() -> None:
    import ast

    from crystalline import _region

    stub = ast.parse(Path(crystalline.__file__).with_name("_region.pyi").read_text())
    told = {n.name: [a.arg for a in n.args.args] for n in stub.body if hasattr(n, "args")}
    told |= {n.target.id: [] for n in stub.body if isinstance(n, ast.AnnAssign)}
    assert told.keys() == {name for name in vars(_region) if not name.startswith("_")}
    for name, arguments in told.items():
        if arguments:
            signature = getattr(_region, name).__doc__.split("\n")[0]
            inside = signature[signature.index("(") + 1 : -1].split(", ")
            assert [word.split()[-1] for word in inside] == arguments, name
