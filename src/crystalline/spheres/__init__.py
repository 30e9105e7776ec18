"""The 12 logical workers: which threads carry them, who controls them, and what they tell."""

from crystalline._queue import MessageQueue, SphereMessage
from crystalline.spheres.allocation import AllocationRow, ThreadAllocation
from crystalline.spheres.crew import Crew, make_crew
from crystalline.spheres.driver import Command
from crystalline.spheres.hierarchy import Leaf, Quota, SphereHierarchy
from crystalline.spheres.live import LiveTraining
from crystalline.spheres.messages import MessageType, Setting
from crystalline.spheres.node_zero import NodeZero, State
from crystalline.spheres.region import RegionMode, SharedRegion
from crystalline.spheres.stats import SphereRow, SphereStats, ThreadRow
from crystalline.spheres.topology import Cache, Cpu, Topology

__all__ = [
    "AllocationRow",
    "Cache",
    "Command",
    "Cpu",
    "Crew",
    "Leaf",
    "LiveTraining",
    "MessageQueue",
    "MessageType",
    "NodeZero",
    "Quota",
    "RegionMode",
    "Setting",
    "SharedRegion",
    "SphereHierarchy",
    "SphereMessage",
    "SphereRow",
    "SphereStats",
    "State",
    "ThreadAllocation",
    "ThreadRow",
    "Topology",
    "make_crew",
]
