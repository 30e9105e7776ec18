"""The CPUs a process may use: their cores, packages, memory nodes, caches and speeds.

Everything is read from text files of Linux, so that another machine can be studied from a copy of
them.  A container may hide any of these files: what is missing is replaced by the plainest guess,
one core per CPU and one node, and never stops a run.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec

from crystalline._native import quota_cpus
from crystalline.errors import UsageError

# What an efficiency core does of a performance core's work, where only the class is known.
ATOM_CAPACITY = 0.6
# Favoured cores turbo a few percent higher than their like; that makes no class of its own.
CLASS_WIDTH = 0.9
# From the outside in: the deeper the domain two threads share, the nearer they are.
_DOMAINS: tuple[Callable[[Cpu], int], ...] = (
    lambda cpu: cpu.package,
    lambda cpu: cpu.node,
    lambda cpu: cpu.l3,
)


@dataclass(frozen=True)
class Cpu:
    """One logical CPU.

    ``number`` and ``node`` are the kernel's numbers; ``core``, ``package`` and ``l3`` count from 0
    in the order of CPU numbers.  CPUs without an L3 share the ``l3`` of their node.  ``capacity``
    is the speed relative to the fastest class of CPUs, in (0, 1].
    """

    number: int
    core: int
    package: int
    node: int
    l3: int
    capacity: float = 1.0


@dataclass(frozen=True)
class Cache:
    """Caches of one kind: the level (1 is L1d), bytes each, and the CPUs that share each one."""

    level: int
    size: int
    shared_by: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Topology:
    """The CPUs of the affinity mask, in the order of their numbers.

    ``quota`` is the number of CPUs that cgroups grant, None without a limit.  ``memory_nodes`` are
    NUMA nodes with memory and no CPU.  Raises UsageError on CPUs that cannot be.
    """

    cpus: tuple[Cpu, ...]
    quota: int | None = None
    caches: tuple[Cache, ...] = ()
    memory_nodes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        numbers = [cpu.number for cpu in self.cpus]
        if not numbers or numbers != sorted({n for n in numbers if n >= 0}):
            raise UsageError(
                f"topology: cpus are {numbers}, but must be one or more, each once, in rising order"
            )
        for cpu in self.cpus:
            if not 0 < cpu.capacity <= 1:
                raise UsageError(
                    f"topology: cpu {cpu.number} has capacity {cpu.capacity}, but the fastest "
                    "has 1 and any other less, above 0"
                )
        if self.quota is not None and self.quota < 1:
            raise UsageError(f"topology: quota is {self.quota}, but must be 1 or more, or None")

    @classmethod
    def detect(cls, root: str | os.PathLike[str] = "/") -> Topology:
        """This machine as this process may use it, or the one whose /proc and /sys lie below
        ``root``.  Raises UsageError if files below another root name no CPU."""
        return _detect(Path(root))

    @property
    def usable(self) -> int:
        """The number of threads that make sense: CPUs of the mask, cut by the quota."""
        return min(len(self.cpus), self.quota or len(self.cpus))

    @property
    def physical(self) -> int:
        """Physical cores that may be busy at once: those of the mask, cut by the quota."""
        cores = len({cpu.core for cpu in self.cpus})
        return min(cores, self.quota or cores)

    @property
    def nodes(self) -> tuple[int, ...]:
        """The NUMA nodes that have CPUs of the mask."""
        return tuple(sorted({cpu.node for cpu in self.cpus}))

    @property
    def smt(self) -> bool:
        """Whether two CPUs of the mask share a core."""
        return len({cpu.core for cpu in self.cpus}) < len(self.cpus)

    @property
    def classes(self) -> tuple[float, ...]:
        """The capacities there are, the fastest first."""
        return tuple(sorted({cpu.capacity for cpu in self.cpus}, reverse=True))

    def order(self, compact: bool) -> tuple[Cpu, ...]:
        """The CPUs in the order in which threads should be placed.

        First one CPU of every physical core, the fastest class first, then the SMT siblings.
        Among equals, ``compact`` fills one L3, node and package before the next, beginning with
        the one that has the most; otherwise packages, nodes and L3s take turns.
        """
        seen: Counter[int] = Counter()
        ranks: dict[tuple[int, float], list[Cpu]] = {}
        for cpu in self.cpus:
            ranks.setdefault((seen[cpu.core], -cpu.capacity), []).append(cpu)
            seen[cpu.core] += 1
        return tuple(cpu for rank in sorted(ranks) for cpu in _arrange(ranks[rank], compact))

    def to_json(self) -> str:
        """The topology as text for from_json, a CPU or a kind of cache per line."""
        lists = {
            name: "[\n  " + ",\n  ".join(json.dumps(asdict(item)) for item in items) + "\n ]"
            for name, items in (("cpus", self.cpus), ("caches", self.caches))
            if items
        }
        return (
            f'{{\n "quota": {json.dumps(self.quota)},\n'
            f' "memory_nodes": {json.dumps(self.memory_nodes)},\n'
            f' "caches": {lists.get("caches", "[]")},\n "cpus": {lists["cpus"]}\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Topology:
        """The topology that to_json wrote; other keys are remarks.  Raises UsageError."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise UsageError(
                f"topology: {error}; expected what Topology.to_json writes"
            ) from None

    def describe(self) -> str:
        """One line for people, as in ``8 cores (16 threads), 1 node, L3 32 MiB``."""
        cores = len({cpu.core for cpu in self.cpus})
        words = _count(cores, "core") + (f" ({len(self.cpus)} threads)" if self.smt else "")
        if len(self.classes) > 1:
            fast = len({cpu.core for cpu in self.cpus if cpu.capacity == 1})
            words += f", {fast} of them fast"
        packages = len({cpu.package for cpu in self.cpus})
        said = [words, *([_count(packages, "package")] if packages > 1 else [])]
        said.append(_count(len(self.nodes), "node"))
        if self.memory_nodes:
            said.append(f"{_count(len(self.memory_nodes), 'node')} of memory alone")
        for cache in self.caches:
            if cache.level == 3:
                times = f"{len(cache.shared_by)} x " if len(cache.shared_by) > 1 else ""
                said.append(f"L3 {times}{cache.size / 2**20:g} MiB")
        if self.quota is not None:
            said.append(f"quota {_count(self.quota, 'CPU')}")
        return ", ".join(said)


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _arrange(
    cpus: Sequence[Cpu],
    compact: bool,
    domains: Sequence[Callable[[Cpu], int]] = _DOMAINS,
) -> list[Cpu]:
    """Equal CPUs, domain after domain or in turns, and so inside each domain."""
    if not domains:
        return list(cpus)
    parts: dict[int, list[Cpu]] = {}
    for cpu in cpus:
        parts.setdefault(domains[0](cpu), []).append(cpu)
    # The sort is stable: among domains of one size, the one with the lowest CPU comes first.
    largest_first = sorted(parts.values(), key=len, reverse=True)
    arranged = [_arrange(part, compact, domains[1:]) for part in largest_first]
    if compact:
        return [cpu for part in arranged for cpu in part]
    return [cpu for turn in zip_longest(*arranged) for cpu in turn if cpu is not None]


# --- Reading sysfs.


def _text(path: Path) -> str:
    """What a file says, nothing where it is missing or unreadable."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _cpu_list(text: str) -> tuple[int, ...]:
    """The numbers of a list such as ``0-3,8``, none where the text is anything else."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return ()
    ranges = re.findall(r"(\d+)(?:-(\d+))?", text)
    return tuple(n for low, high in ranges for n in range(int(low), int(high or low) + 1))


def _dense(keys: Iterable[Hashable]) -> list[int]:
    """A small number for every key, counting from 0 in the order in which they appear."""
    ids: dict[Hashable, int] = {}
    return [ids.setdefault(key, len(ids)) for key in keys]


def _detect(root: Path) -> Topology:
    system = root / "sys/devices/system"
    numbers = _mask(root)
    folders = {n: system / f"cpu/cpu{n}" for n in numbers}
    # A package the kernel does not know reads -1 or is hidden: then all CPUs are in one.
    packages = [_number(folders[n] / "topology/physical_package_id") for n in numbers]
    cores = [_siblings(folders[n]) or (n,) for n in numbers]
    nodes, memory_nodes = _nodes(system / "node")
    caches, l3 = _caches(folders)
    homes = [nodes.get(n, min(nodes.values(), default=0)) for n in numbers]
    l3s = [
        l3.get(n, ("none", package, node))
        for n, package, node in zip(numbers, packages, homes, strict=True)
    ]
    cpus = map(
        Cpu, numbers, _dense(cores), _dense(packages), homes, _dense(l3s),
        _capacities(root, folders),
    )  # fmt: skip
    quota = quota_cpus(str(root).rstrip("/"))
    return Topology(tuple(cpus), quota or None, caches, memory_nodes)


def _mask(root: Path) -> list[int]:
    """The CPUs this process may run on; for a recorded machine, those its files name."""
    if root == Path("/"):
        return sorted(os.sched_getaffinity(0))
    allowed = re.search(r"^Cpus_allowed_list:(.*)$", _text(root / "proc/self/status"), re.MULTILINE)
    online = _cpu_list(_text(root / "sys/devices/system/cpu/online"))
    mask = _cpu_list(allowed[1].strip()) if allowed else online
    # A mask may name CPUs that are switched off.
    numbers = sorted(set(mask) & set(online) if online else set(mask))
    if not numbers:
        raise UsageError(
            f"{root}: no CPU is named; record proc/self/status or sys/devices/system/cpu/online"
        )
    return numbers


def _siblings(folder: Path) -> tuple[int, ...]:
    """The CPUs of one core; kernels before 5.2 know only the older name."""
    for name in ("core_cpus_list", "thread_siblings_list"):
        if listed := _cpu_list(_text(folder / "topology" / name)):
            return listed
    return ()


def _nodes(folder: Path) -> tuple[dict[int, int], tuple[int, ...]]:
    """The node of every CPU, and the nodes that have memory alone."""
    with_memory = _cpu_list(_text(folder / "has_memory"))
    nodes: dict[int, int] = {}
    memory_nodes = []
    for path in folder.glob("node[0-9]*"):
        node, cpus = int(path.name[4:]), path / "cpulist"
        nodes.update((n, node) for n in _cpu_list(_text(cpus)))
        if cpus.is_file() and not _text(cpus) and (node in with_memory or not with_memory):
            memory_nodes.append(node)
    return nodes, tuple(sorted(memory_nodes))


def _caches(folders: dict[int, Path]) -> tuple[tuple[Cache, ...], dict[int, tuple[int, ...]]]:
    """The data caches of the CPUs, by level and size, and for every CPU those it shares L3 with."""
    found: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    l3 = {}
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    for number, folder in folders.items():
        for index in sorted(folder.glob("cache/index[0-9]*")):
            level = _number(index / "level")
            size = re.fullmatch(r"(\d+)([KMG]?)", _text(index / "size"))
            if level not in (1, 2, 3) or _text(index / "type") == "Instruction" or not size:
                continue
            shared = _cpu_list(_text(index / "shared_cpu_list")) or (number,)
            mine = tuple(sorted(folders.keys() & set(shared)))
            found.setdefault((level, int(size[1]) * units.get(size[2], 1)), set()).add(mine)
            if level == 3:
                l3[number] = mine
    caches = (Cache(*kind, tuple(sorted(shares))) for kind, shares in sorted(found.items()))
    return tuple(caches), l3


def _capacities(root: Path, folders: dict[int, Path]) -> list[float]:
    """Relative speeds from the first source that tells the CPUs apart; all 1.0 if none does."""
    atoms = set(_cpu_list(_text(root / "sys/devices/cpu_atom/cpus")))
    sources = (
        [_number(folder / "cpu_capacity") for folder in folders.values()],
        [ATOM_CAPACITY if n in atoms else 1.0 for n in folders],
        [_number(folder / "cpufreq/cpuinfo_max_freq") for folder in folders.values()],
    )
    for source in sources:
        speeds = [speed for speed in source if speed]
        if len(speeds) == len(folders) and min(speeds) < CLASS_WIDTH * max(speeds):
            return _classed(speeds)
    return [1.0] * len(folders)


def _classed(speeds: Sequence[float]) -> list[float]:
    """Speeds relative to the fastest; those nearly as fast as their class's fastest count as it."""
    heads: list[float] = []
    for speed in sorted(set(speeds), reverse=True):
        if not heads or speed < CLASS_WIDTH * heads[-1]:
            heads.append(speed)
    return [min(head for head in heads if head >= speed) / heads[0] for speed in speeds]
