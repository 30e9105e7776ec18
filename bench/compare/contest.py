"""What is compared, and what came out: contenders, contests, rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from peak import SECONDS, measure

OURS = "crystalline"
# Peers with an allocator that keeps its pages, since page faults cost them up to a third.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "THP_MEM_ALLOC_ENABLE": "1",  # torch asks for huge pages
}
# Everyone on AVX2.  MKL heeds it on Intel only, which elsewhere can but help a peer.
AVX2 = {
    "CRYSTALLINE_ISA": "avx2",
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}


@dataclass(frozen=True)
class Settings:
    """What the command line says, and the peaks that were measured before all else."""

    threads: int
    samples: int
    quick: bool
    isa: str  # "avx512", "avx2" or "portable": what our kernels run on
    peaks: dict[str, Any]

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that our kernels have here."""
        bf16 = self.isa == "avx512" and "bf16" in self.peaks["arithmetic"]
        return ("fp32", "bf16") if bf16 else ("fp32",)

    @property
    def tries(self) -> int | None:
        """At one sample: a quick run does not wait for a quiet moment."""
        return 1 if self.quick else None

    def peak(self, precision: str = "fp32") -> float | None:
        """GFLOP/s on all threads, of our instruction set; None where it was left out."""
        of = self.peaks["arithmetic"].get("bf16" if precision == "bf16" else self.isa)
        return of[str(self.threads)] if of else None


@dataclass(frozen=True)
class Contender:
    """Who takes part: ``who`` is what the group's ``build`` knows, ``name`` what the table says."""

    name: str
    who: str
    environment: tuple[tuple[str, str], ...] = ()

    @classmethod
    def tuned(cls, name: str, who: str) -> Contender:
        return cls(name, who, tuple(TUNED.items()))


@dataclass(frozen=True)
class Moving:
    """A limit that memory sets, sampled in turn with the contenders: ``move`` over ``size`` bytes.

    ``per_unit`` is how many 10^9 bytes a unit of the contest's work moves; ``peak`` what
    arithmetic allows beside it, in units a second.
    """

    move: str
    size: int
    per_unit: float
    peak: float = math.inf

    def measured(self, s: Settings) -> float:
        """Units a second at most."""
        seconds = SECONDS / 10 if s.quick else SECONDS
        return min(self.peak, measure(self.move, s.threads, self.size, seconds) / self.per_unit)


@dataclass(frozen=True)
class Contest:
    """Equal work for several contenders, made by ``build(who, case, threads)`` of a module.

    ``amount`` is the work of one call in 10^9 operations, 10^9 bytes, or tokens; ``limit`` what
    this machine can do at most in that unit a second.  With the unit "ms" the row is about the
    time of a call.  ``memory`` asks for what a call takes beyond what was there ("extra"), or for
    the process's most ("peak").
    """

    name: str
    module: str
    case: dict[str, Any]
    contenders: tuple[Contender, ...]
    amount: float
    unit: str
    limit: float | Moving | None = None
    memory: str | None = None
    alone: bool = False  # processes end with the contest, since they are large

    @property
    def group(self) -> str:
        return self.module.rsplit(".", 1)[-1]

    def figure(self, seconds: float) -> float:
        """What the table says of a call that takes so long."""
        return 1e3 * seconds if self.unit == "ms" else self.amount / seconds


@dataclass
class Row:
    """A line of the table.  ``ratio`` is ours over the best peer's; less MiB or ms is better."""

    group: str
    name: str
    unit: str
    ours: float | None
    peers: dict[str, float]
    limit: float | None = None
    failed: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    dropped: int = 0
    noisy: bool = False
    best: str | None = None
    ratio: float | None = None
    share: float | None = None  # of the limit

    def __post_init__(self) -> None:
        if self.peers:
            pick = min if self.less_is_better else max
            self.best = pick(self.peers, key=lambda name: self.peers[name])
        if self.ours is not None and self.best is not None and self.peers[self.best]:
            self.ratio = self.ours / self.peers[self.best]
        if self.ours is not None and self.limit:
            self.share = self.ours / self.limit

    @property
    def less_is_better(self) -> bool:
        return self.unit in ("MiB", "ms")


def geometric_mean(group: str, name: str, rows: Iterable[Row]) -> list[Row]:
    """A row that sums up the ratios of others, or none where there is none."""
    ratios = [r.ratio for r in rows if r.ratio]
    if not ratios:
        return []
    mean = Row(group, name, "ratio", None, {})
    mean.ratio = statistics.geometric_mean(ratios)
    return [mean]


Plan = Callable[[Settings], list[Contest]]
