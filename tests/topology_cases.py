"""Machines to allocate threads on: recorded ones, random ones, and either as files of Linux."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from crystalline.spheres import Cache, Cpu, Topology

RECORDS = {
    path.stem: Topology.from_json(path.read_text())
    for path in sorted((Path(__file__).parent / "topologies").glob("*.json"))
}
OFFLINE = 777  # a CPU that masks and caches of the fake tree name, and nobody may use


def dense(keys: Iterable[Hashable]) -> list[int]:
    ids: dict[Hashable, int] = {}
    return [ids.setdefault(key, len(ids)) for key in keys]


@st.composite
def topologies(draw: Any) -> Topology:
    """Machines up to 2 x 2 x 2 x 3 cores, lopsided, with gaps in the numbers."""
    small = st.integers(1, 2)
    has_l3 = draw(st.booleans())
    places = []  # (package, node, l3, core, capacity) of every CPU
    for package in range(draw(small)):
        for node in range(draw(small)):
            for l3 in range(draw(small) if has_l3 else 1):
                for core in range(draw(st.integers(1, 3))):
                    capacity = draw(st.sampled_from([1.0, 1.0, 0.75, 600 / 1024]))
                    at = (package, (package, node), (package, node, l3))
                    places += [(*at, (*at, core), capacity)] * draw(small)
    places = draw(st.permutations(places))
    gaps = draw(st.lists(st.integers(1, 5), min_size=len(places), max_size=len(places)))
    numbers = [sum(gaps[:i]) for i in range(len(gaps))]
    packages, nodes, l3s, cores, speeds = zip(*places, strict=True)
    fastest = max(speeds)
    if fastest < 1:
        speeds = tuple(1.0 if speed == fastest else 600 / 1024 for speed in speeds)
    kernel_nodes = draw(st.permutations(range(len(set(nodes)) + 1)))
    cpus = tuple(
        Cpu(*row)
        for row in zip(
            numbers, dense(cores), dense(packages), [kernel_nodes[n] for n in dense(nodes)],
            dense(l3s), speeds, strict=True,
        )
    )  # fmt: skip
    caches = (Cache(1, 49152, sharing(cpus, "core")), Cache(2, 2**21, sharing(cpus, "core")))
    if has_l3:
        caches += (Cache(3, 2**25, sharing(cpus, "l3")),)
    quota = draw(st.none() | st.integers(1, 30))
    return Topology(cpus, quota, caches, draw(st.sampled_from([(), (kernel_nodes[-1],)])))


def sharing(cpus: tuple[Cpu, ...], what: str) -> tuple[tuple[int, ...], ...]:
    shared = defaultdict(list)
    for cpu in cpus:
        shared[getattr(cpu, what)].append(cpu.number)
    return tuple(sorted(tuple(numbers) for numbers in shared.values()))


def cpu_list(numbers: Iterable[int]) -> str:
    """Numbers as the kernel writes them: 0-3,8."""
    ranges: list[list[int]] = []
    for n in sorted(numbers):
        if ranges and ranges[-1][1] == n - 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in ranges) + "\n"


def write_tree(root: Path, t: Topology) -> None:
    """The files of /proc and /sys that a machine of this topology would show."""
    system = "sys/devices/system"
    numbers = [cpu.number for cpu in t.cpus]
    files = {
        "proc/self/status": f"Name:\tx\nCpus_allowed_list:\t{cpu_list([*numbers, OFFLINE])}",
        "proc/self/cgroup": "0::/a\n",
        "sys/fs/cgroup/a/cpu.max": f"{t.quota * 100000 if t.quota else 'max'} 100000\n",
        f"{system}/cpu/online": cpu_list([*numbers, OFFLINE + 1]),
    }
    cores = {c.core: [o.number for o in t.cpus if o.core == c.core] for c in t.cpus}
    for cpu in t.cpus:
        folder = f"{system}/cpu/cpu{cpu.number}"
        files |= {
            f"{folder}/topology/physical_package_id": f"{cpu.package * 3 + 1}\n",
            f"{folder}/topology/core_cpus_list": cpu_list(cores[cpu.core]),
            f"{folder}/cpu_capacity": f"{round(cpu.capacity * 1024)}\n",
            f"{folder}/cache/index9/level": "1\n",
            f"{folder}/cache/index9/type": "Instruction\n",
            f"{folder}/cache/index9/size": "64K\n",
        }
        mine = [(c, s) for c in t.caches for s in c.shared_by if cpu.number in s]
        for index, (cache, shared) in enumerate(mine):
            at = f"{folder}/cache/index{index}"
            files |= {
                f"{at}/level": f"{cache.level}\n",
                f"{at}/type": "Data\n" if cache.level == 1 else "Unified\n",
                f"{at}/size": f"{cache.size // 1024}K\n",
                f"{at}/shared_cpu_list": cpu_list([*shared, OFFLINE]),
            }
    for node in (*t.nodes, *t.memory_nodes):
        mine_too = [cpu.number for cpu in t.cpus if cpu.node == node]
        files[f"{system}/node/node{node}/cpulist"] = cpu_list(mine_too)
    # A device may be a node with neither CPUs nor memory.
    files[f"{system}/node/node{OFFLINE}/cpulist"] = "\n"
    files[f"{system}/node/has_memory"] = cpu_list([*t.nodes, *t.memory_nodes])
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def without_capacity(t: Topology) -> Topology:
    return replace(t, cpus=tuple(replace(cpu, capacity=1.0) for cpu in t.cpus))
