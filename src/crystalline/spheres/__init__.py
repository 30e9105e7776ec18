"""The 12 logical workers: which threads carry them, and on which CPUs."""

from crystalline.spheres.allocation import AllocationRow, ThreadAllocation
from crystalline.spheres.topology import Cache, Cpu, Topology

__all__ = ["AllocationRow", "Cache", "Cpu", "ThreadAllocation", "Topology"]
