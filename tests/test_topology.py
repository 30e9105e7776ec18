"""The machine: what sysfs says of it, in which order its CPUs are used, and its record."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from conftest import examples
from hypothesis import given, settings
from topology_cases import RECORDS, topologies, without_capacity, write_tree

from crystalline._native import usable_cpus
from crystalline.errors import UsageError
from crystalline.spheres import Cpu, Topology

SYSTEM = "sys/devices/system"
EVERY_RECORD = pytest.mark.parametrize("t", RECORDS.values(), ids=RECORDS)


# --- Detection.


@EVERY_RECORD
def test_a_recorded_machine_is_detected_from_its_files(tmp_path: Path, t: Topology) -> None:
    write_tree(tmp_path, t)
    assert Topology.detect(tmp_path) == t
    assert Topology.detect(f"{tmp_path}/") == t


@settings(max_examples=examples(30), deadline=None)
@given(t=topologies())
def test_any_machine_is_detected_from_its_files(t: Topology) -> None:
    with tempfile.TemporaryDirectory() as root:
        write_tree(Path(root), t)
        assert Topology.detect(root) == t


def test_this_machine() -> None:
    t = Topology.detect()
    assert {cpu.number for cpu in t.cpus} == os.sched_getaffinity(0)
    assert t.usable == usable_cpus() and 1 <= t.physical <= t.usable
    assert Topology.from_json(t.to_json()) == t


def test_hidden_files_leave_a_core_per_cpu_and_one_node(tmp_path: Path) -> None:
    write_tree(tmp_path, RECORDS["two-socket-96"])
    shutil.rmtree(tmp_path / "sys")
    t = Topology.detect(tmp_path)
    assert len(t.cpus) == 193  # without the list of CPUs online, the mask alone counts
    assert t == Topology(tuple(Cpu(c.number, i, 0, 0, 0) for i, c in enumerate(t.cpus)))
    assert (t.usable, t.physical, t.nodes, t.smt, t.classes) == (193, 193, (0,), False, (1.0,))


def test_without_a_recorded_mask_every_cpu_online_counts(tmp_path: Path) -> None:
    (tmp_path / SYSTEM / "cpu").mkdir(parents=True)
    (tmp_path / SYSTEM / "cpu/online").write_text("0,2-3\n")
    assert [cpu.number for cpu in Topology.detect(tmp_path).cpus] == [0, 2, 3]


def test_a_tree_that_names_no_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^{tmp_path}: no CPU is named; record proc"):
        Topology.detect(tmp_path)


@EVERY_RECORD
def test_nonsense_in_sysfs_counts_as_missing(tmp_path: Path, t: Topology) -> None:
    write_tree(tmp_path, t)
    for path in (tmp_path / SYSTEM).rglob("*"):
        if path.is_file() and path.name != "online":
            path.write_bytes(b"-1\xff?\n" if path.name != "cpulist" else b"?")
    got = Topology.detect(tmp_path)
    assert got == Topology(
        tuple(Cpu(cpu.number, i, 0, 0, 0) for i, cpu in enumerate(t.cpus)), t.quota
    )


def test_old_kernels_name_siblings_otherwise(tmp_path: Path) -> None:
    t = RECORDS["smt-8"]
    write_tree(tmp_path, t)
    for path in tmp_path.rglob("core_cpus_list"):
        path.rename(path.with_name("thread_siblings_list"))
    assert Topology.detect(tmp_path) == t


def hybrid(root: Path) -> Topology:
    """The hybrid laptop on a kernel that gives every CPU the same capacity."""
    t = RECORDS["hybrid-laptop"]
    write_tree(root, t)
    for path in root.rglob("cpu_capacity"):
        path.write_text("1024\n")
    assert Topology.detect(root) == without_capacity(t)
    return t


def test_classes_of_cores_tell_where_capacities_do_not(tmp_path: Path) -> None:
    t = hybrid(tmp_path)
    for kind, cpus in (("core", "0-11"), ("atom", "12-19")):
        (tmp_path / f"sys/devices/cpu_{kind}").mkdir()
        (tmp_path / f"sys/devices/cpu_{kind}/cpus").write_text(f"{cpus}\n")
    got = Topology.detect(tmp_path)
    assert [cpu.capacity for cpu in got.cpus] == [1.0] * 12 + [0.6] * 8
    assert without_capacity(got) == without_capacity(t)


def test_frequencies_tell_where_nothing_else_does(tmp_path: Path) -> None:
    for cpu in hybrid(tmp_path).cpus:
        folder = tmp_path / SYSTEM / f"cpu/cpu{cpu.number}/cpufreq"
        folder.mkdir()
        # Two favoured cores: a few percent more make no class of their own.
        khz = 5_000_000 if cpu.number < 4 else 4_800_000 if cpu.number < 12 else 3_500_000
        (folder / "cpuinfo_max_freq").write_text(f"{khz}\n")
    got = Topology.detect(tmp_path)
    assert [cpu.capacity for cpu in got.cpus] == [1.0] * 12 + [0.7] * 8
    (folder / "cpuinfo_max_freq").unlink()  # known of some CPUs only: no comparison
    assert Topology.detect(tmp_path).classes == (1.0,)


def test_three_classes_each_as_wide_as_the_others(tmp_path: Path) -> None:
    write_tree(tmp_path, RECORDS["smt-8-mask-3"])
    for number, capacity in ((2, 1000), (3, 800), (10, 760)):
        (tmp_path / SYSTEM / f"cpu/cpu{number}/cpu_capacity").write_text(f"{capacity}\n")
    assert [cpu.capacity for cpu in Topology.detect(tmp_path).cpus] == [1.0, 0.8, 0.8]


# --- What it amounts to.


@pytest.mark.parametrize(
    ("name", "usable", "physical", "nodes", "smt", "classes", "line"),
    [
        ("vm-2", 2, 2, (0,), False, (1.0,), "2 cores, 1 node, L3 32 MiB"),
        ("smt-8", 16, 8, (0,), True, (1.0,), "8 cores (16 threads), 1 node, L3 32 MiB"),
        ("smt-8-mask-3", 3, 2, (0,), True, (1.0,), "2 cores (3 threads), 1 node, L3 32 MiB"),
        ("hybrid-laptop", 20, 14, (0,), True, (1.0, 600 / 1024),
         "14 cores (20 threads), 6 of them fast, 1 node, L3 24 MiB"),
        ("two-socket-96", 192, 96, (0, 1), True, (1.0,),
         "96 cores (192 threads), 2 packages, 2 nodes, L3 12 x 32 MiB"),
        ("two-socket-96-quota-12", 12, 12, (0, 1), True, (1.0,),
         "96 cores (192 threads), 2 packages, 2 nodes, L3 12 x 32 MiB, quota 12 CPUs"),
    ],
)  # fmt: skip
def test_summaries(name, usable, physical, nodes, smt, classes, line):
    t = RECORDS[name]
    assert (t.usable, t.physical, t.nodes, t.smt, t.classes) == (
        usable, physical, nodes, smt, classes,
    )  # fmt: skip
    assert t.describe() == line


def test_nodes_of_memory_alone_and_a_single_core_in_words() -> None:
    t = Topology((Cpu(0, 0, 0, 0, 0),), 1, (), (1, 2))
    assert t.describe() == "1 core, 1 node, 2 nodes of memory alone, quota 1 CPU"


# --- The order of placement.


def distance(a: Cpu, b: Cpu) -> int:
    return (a.package != b.package) + (a.node != b.node) + (a.l3 != b.l3)


def check_order(t: Topology, order: tuple[Cpu, ...]) -> None:
    assert sorted(order, key=lambda cpu: cpu.number) == list(t.cpus)
    seen: Counter[int] = Counter()
    ranks = []
    for cpu in order:
        ranks.append((seen[cpu.core], -cpu.capacity))
        seen[cpu.core] += 1
    assert ranks == sorted(ranks)  # cores before siblings, and among each the fastest first


@settings(max_examples=examples(100), deadline=None)
@given(t=topologies())
def test_cores_come_before_siblings_and_fast_before_slow(t: Topology) -> None:
    for compact in (True, False):
        check_order(t, t.order(compact))


@EVERY_RECORD
def test_spread_is_never_nearer_than_compact(t: Topology) -> None:
    for order in (t.order(compact=True), t.order(compact=False)):
        check_order(t, order)
    for n in range(2, min(t.physical, 96) + 1):
        far, near = (
            sum(distance(a, b) for a, b in combinations(t.order(compact)[:n], 2))
            for compact in (False, True)
        )
        assert far >= near
        if n <= 16 and t.physical > 16:
            assert far > near


def test_two_sockets() -> None:
    t = RECORDS["two-socket-96"]
    near, far = t.order(compact=True), t.order(compact=False)
    assert [cpu.number for cpu in near] == list(range(192))
    assert [cpu.number for cpu in far[:6]] == [0, 48, 8, 56, 16, 64]
    assert {cpu.package for cpu in far[:2]} == {0, 1}
    assert len({cpu.l3 for cpu in near[:8]}) == 1 and len({cpu.l3 for cpu in far[:12]}) == 12
    assert len({cpu.package for cpu in near[:48]}) == 1


def test_nodes_of_one_package_take_turns_before_their_l3s() -> None:
    t = Topology(tuple(Cpu(n, n, 0, n // 4, n // 2) for n in range(8)))
    assert [cpu.number for cpu in t.order(compact=False)] == [0, 4, 2, 6, 1, 5, 3, 7]


def test_compact_begins_where_most_cores_are() -> None:
    """A mask may leave crumbs of one L3 before a whole one."""
    t = RECORDS["two-socket-96"]
    cut = replace(t, cpus=tuple(cpu for cpu in t.cpus if 7 <= cpu.number < 16))
    assert [cpu.number for cpu in cut.order(compact=True)] == [*range(8, 16), 7]


def test_the_hybrid_laptop_uses_fast_cores_then_slow_ones_then_siblings() -> None:
    order = [cpu.number for cpu in RECORDS["hybrid-laptop"].order(compact=True)]
    assert order == [*range(0, 12, 2), *range(12, 20), *range(1, 12, 2)]


# --- The record.


@settings(max_examples=examples(50), deadline=None)
@given(t=topologies())
def test_a_record_reads_back_equal(t: Topology) -> None:
    assert Topology.from_json(t.to_json()) == t
    assert Topology.from_json(t.to_json().encode()) == t


def test_every_record_says_what_it_is_modelled_after() -> None:
    for path in (Path(__file__).parent / "topologies").iterdir():
        assert len(json.loads(path.read_text())["machine"]) > 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "truncated"), ("[]", "Expected `object`"), ("{}", "missing required field `cpus`"),
        ('{"cpus": [{"number": "x"}]}', "Expected `int`, got `str`"),
        ('{"cpus": []}', "cpus are \\[\\], but must be one or more"),
    ],
)  # fmt: skip
def test_text_that_is_no_record_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"(?i)^topology: .*{said}"):
        Topology.from_json(text)


@pytest.mark.parametrize(
    ("numbers", "capacity", "quota", "said"),
    [
        ([0, 0], 1.0, None, r"cpus are \[0, 0\]"), ([1, 0], 1.0, None, r"cpus are \[1, 0\]"),
        ([-1, 0], 1.0, None, r"cpus are \[-1, 0\]"), ([0, 4], 0.0, None, "cpu 0 has capacity 0"),
        ([3, 4], 1.5, None, "cpu 3 has capacity 1.5"), ([0], 1.0, 0, "quota is 0"),
        ([3], float("nan"), None, "cpu 3 has capacity nan"),
    ],
)  # fmt: skip
def test_cpus_that_cannot_be_are_refused(numbers, capacity, quota, said):
    with pytest.raises(UsageError, match=f"^topology: {said}"):
        Topology(tuple(Cpu(n, n, 0, 0, 0, capacity) for n in numbers), quota)
