"""Types of the compiled kernels; what they compute stands in ``_kernels/team.pyx``."""

from collections.abc import Sequence
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Ids = NDArray[np.int32]
_Starts = NDArray[np.int64]

ISAS: Final[tuple[str, ...]]
PARTS: Final[int]

class _Statistics(TypedDict):
    regions: int
    inside: int
    spheres: _Starts
    threads: _Starts
    leaves: _Starts

def available_isas() -> tuple[str, ...]: ...
def usable_cpus() -> int: ...
def quota_cpus(root: str) -> int: ...

def pin_thread(cpu: int) -> bool: ...
def interleave(x: _Floats, nodes: NDArray[np.int32]) -> bool: ...

class Pool:
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def cpus(self) -> tuple[int, ...] | None: ...
    @property
    def work_bytes(self) -> int: ...
    def __init__(
        self, threads: int, isa: str | None = None, cpus: Sequence[int] | None = None
    ) -> None: ...
    def arrange(
        self,
        begin: NDArray[np.int32],
        owner: NDArray[np.int32],
        order: NDArray[np.int32],
        steal: bool,
    ) -> None: ...
    def statistics(self) -> _Statistics: ...

class Team(Pool):
    def work_floats(
        self, groups: _Starts, T: int, D: int, H: int, K: int, F: int, V: int
    ) -> int: ...
    def exp(self, y: _Floats, x: _Floats) -> None: ...
    def log(self, y: _Floats, x: _Floats) -> None: ...
    def matmul(self, y: _Floats, x: _Floats, w: _Floats, init: _Floats | None = None) -> None: ...
    def packed_len(self, N: int, K: int) -> int: ...
    def pack_weight(self, panels: _Floats, w: _Floats) -> None: ...
    def matmul_packed(
        self, y: _Floats, x: _Floats, panels: _Floats, init: _Floats | None = None
    ) -> None: ...
    def matmul_dx(self, dx: _Floats, dy: _Floats, w: _Floats) -> None: ...
    def matmul_dw(
        self, dw: _Floats, dy: _Floats, x: _Floats, groups: _Starts, accumulate: bool = False
    ) -> None: ...
    def rmsnorm(self, y: _Floats, rrms: _Floats, x: _Floats, w: _Floats, eps: float) -> None: ...
    def rmsnorm_bwd(
        self,
        dx: _Floats,
        dw: _Floats,
        dy: _Floats,
        x: _Floats,
        w: _Floats,
        rrms: _Floats,
        groups: _Starts,
        add: bool = False,
        accumulate: bool = False,
    ) -> None: ...
    def rope(
        self,
        x: _Floats,
        cosine: _Floats,
        sine: _Floats,
        heads: int,
        T: int,
        position: int = 0,
        inverse: bool = False,
    ) -> None: ...
    def attention(
        self,
        out: _Floats,
        lse: _Floats,
        qkv: _Floats,
        T: int,
        H: int,
        K: int,
        lengths: _Starts | None = None,
    ) -> None: ...
    def attention_bwd(
        self,
        dqkv: _Floats,
        dout: _Floats,
        out: _Floats,
        qkv: _Floats,
        lse: _Floats,
        T: int,
        H: int,
        K: int,
        lengths: _Starts | None = None,
    ) -> None: ...
    def attention_cached(
        self, out: _Floats, qkv: _Floats, keys: _Floats, values: _Floats, H: int, position: int
    ) -> None: ...
    def swiglu(self, act: _Floats, gu: _Floats) -> None: ...
    def swiglu_bwd(self, dgu: _Floats, dact: _Floats, gu: _Floats) -> None: ...
    def embedding(self, x: _Floats, w: _Floats, ids: _Ids) -> None: ...
    def embedding_bwd(
        self,
        dw: _Floats,
        dx: _Floats,
        ids: _Ids,
        groups: _Starts,
        order: _Ids,
        index: _Starts,
        accumulate: bool = False,
    ) -> None: ...
    def head(
        self,
        losses: _Floats,
        h: _Floats,
        w: _Floats,
        targets: _Ids,
        groups: _Starts,
        dh: _Floats | None = None,
        dw: _Floats | None = None,
        scale: float = 1.0,
        accumulate: bool = False,
    ) -> None: ...
    def adamw(
        self,
        p: _Floats,
        m: _Floats,
        v: _Floats,
        grad: _Floats,
        *,
        grad_scale: float,
        beta1: float,
        beta2: float,
        step_size: float,
        eps: float,
        decay: float,
        root_bias2: float,
    ) -> None: ...
    def squared_norm(self, x: _Floats, shares: NDArray[np.float64] | None = None) -> float: ...
    def touch(self, x: _Floats) -> None: ...
    def softmax(self, y: _Floats, x: _Floats) -> None: ...
    def softmax_bwd(self, dx: _Floats, dy: _Floats, y: _Floats) -> None: ...
    def log_softmax(self, y: _Floats, x: _Floats) -> None: ...
    def log_softmax_bwd(self, dx: _Floats, dy: _Floats, y: _Floats) -> None: ...
    def logsumexp(self, y: _Floats, x: _Floats) -> None: ...
    def cross_entropy(self, losses: _Floats, logits: _Floats, targets: _Ids) -> None: ...
    def cross_entropy_bwd(
        self, dlogits: _Floats, dlosses: _Floats, logits: _Floats, targets: _Ids
    ) -> None: ...
