"""Types of the compiled kernels; what they compute stands in ``_kernels/team.pyx``."""

from collections.abc import Sequence
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Ids = NDArray[np.int32]
_Starts = NDArray[np.int64]
_Bf16 = NDArray[np.uint16]

ISAS: Final[tuple[str, ...]]
PARTS: Final[int]
cry_kernels: Final[object]
PRECISIONS: Final[tuple[str, ...]]

class _Statistics(TypedDict):
    regions: int
    inside: int
    spheres: _Starts
    threads: _Starts
    leaves: _Starts

def available_isas() -> tuple[str, ...]: ...
def kernel_table(isa: str | None = None) -> object: ...
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
    def has_bf16(self) -> bool: ...
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

class Weight:
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class Stack:
    @property
    def isa(self) -> str: ...
    def __init__(
        self,
        layers: Sequence[tuple[_Floats, Weight, Weight, _Floats, Weight, Weight, Weight]],
        norm: _Floats,
        embedding: Weight,
        cosine: _Floats,
        sine: _Floats,
        H: int,
        K: int,
        eps: float,
    ) -> None: ...

class Products(Pool):
    def matmul(self, y: _Floats, x: _Floats, w: _Floats, init: _Floats | None = None) -> None: ...
    def packed_len(self, N: int, K: int) -> int: ...
    def pack_weight(self, panels: _Floats, w: _Floats) -> None: ...
    def matmul_packed(
        self, y: _Floats, x: _Floats, panels: _Floats, init: _Floats | None = None
    ) -> None: ...
    def matmul_dx(self, dx: _Floats, dy: _Floats, w: _Floats) -> None: ...
    def matmul_swiglu(self, gu: _Floats, act: _Floats, x: _Floats, w: _Floats) -> None: ...
    def matmul_dx_swiglu(self, gu: _Floats, act: _Floats, dy: _Floats, w: _Floats) -> None: ...
    def matmul_dw(
        self, dw: _Floats, dy: _Floats, x: _Floats, groups: _Starts, accumulate: bool = False
    ) -> None: ...

class Softmaxes(Products):
    def exp(self, y: _Floats, x: _Floats) -> None: ...
    def log(self, y: _Floats, x: _Floats) -> None: ...
    def softmax(self, y: _Floats, x: _Floats) -> None: ...
    def softmax_bwd(self, dx: _Floats, dy: _Floats, y: _Floats) -> None: ...
    def log_softmax(self, y: _Floats, x: _Floats) -> None: ...
    def log_softmax_bwd(self, dx: _Floats, dy: _Floats, y: _Floats) -> None: ...
    def logsumexp(self, y: _Floats, x: _Floats) -> None: ...
    def cross_entropy(self, losses: _Floats, logits: _Floats, targets: _Ids) -> None: ...
    def cross_entropy_bwd(
        self, dlogits: _Floats, dlosses: _Floats, logits: _Floats, targets: _Ids
    ) -> None: ...

class Rows(Softmaxes):
    def exp2(self, y: _Floats, x: _Floats) -> None: ...
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
    def rope_at(
        self,
        x: _Floats,
        cosine: _Floats,
        sine: _Floats,
        heads: int,
        positions: _Ids,
        inverse: bool = False,
    ) -> None: ...
    def swiglu(self, act: _Floats, gu: _Floats) -> None: ...
    def swiglu_bwd(self, dgu: _Floats, dact: _Floats, gu: _Floats) -> None: ...
    def swiglu_bwd_act(self, dgu: _Floats, act: _Floats, gu: _Floats) -> None: ...
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

class Attends(Rows):
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
    def attention_windows(
        self,
        out: _Floats,
        lse: _Floats,
        qkv: _Floats,
        starts: _Starts,
        H: int,
        K: int,
        lengths: _Starts | None = None,
    ) -> None: ...
    def attention_windows_bwd(
        self,
        dqkv: _Floats,
        dout: _Floats,
        out: _Floats,
        qkv: _Floats,
        lse: _Floats,
        starts: _Starts,
        H: int,
        K: int,
        lengths: _Starts | None = None,
    ) -> None: ...
    def attention_cached(
        self, out: _Floats, qkv: _Floats, keys: _Floats, values: _Floats, H: int, position: int
    ) -> None: ...

class Narrow(Attends):
    def to_bf16(self, y: _Bf16, x: _Floats) -> None: ...
    def matmul_bf16(
        self, y: _Bf16 | _Floats, x: _Bf16, w: _Floats, init: _Floats | None = None
    ) -> None: ...
    def matmul_dx_bf16(self, dx: _Bf16 | _Floats, dy: _Bf16, w: _Floats) -> None: ...
    def matmul_dw_bf16(
        self, dw: _Floats, dy: _Bf16, x: _Bf16, groups: _Starts, accumulate: bool = False
    ) -> None: ...
    def rmsnorm_bf16(
        self, y: _Bf16, rrms: _Floats, x: _Floats, w: _Floats, eps: float
    ) -> None: ...
    def swiglu_bf16(self, act: _Bf16, gu: _Bf16) -> None: ...
    def swiglu_bwd_act_bf16(self, dgu: _Bf16, act: _Bf16, gu: _Bf16) -> None: ...
    def from_bf16(self, y: _Floats, x: _Bf16) -> None: ...
    def rope_bf16(
        self, y: _Floats, x: _Bf16, cosine: _Floats, sine: _Floats, heads: int, T: int
    ) -> None: ...
    def rope_bwd_bf16(
        self, dx: _Bf16, dy: _Floats, cosine: _Floats, sine: _Floats, heads: int, T: int
    ) -> None: ...
    def rope_at_bf16(
        self, y: _Floats, x: _Bf16, cosine: _Floats, sine: _Floats, heads: int, positions: _Ids
    ) -> None: ...
    def rope_bwd_at_bf16(
        self, dx: _Bf16, dy: _Floats, cosine: _Floats, sine: _Floats, heads: int, positions: _Ids
    ) -> None: ...

class Generates(Narrow):
    def weight_bytes(self, N: int, K: int, precision: str = "fp32") -> int: ...
    def weight(
        self, w: _Floats, precision: str = "fp32", room: NDArray[np.uint8] | None = None
    ) -> Weight: ...
    def matmul_weight(
        self, y: _Floats, x: _Floats, w: Weight, init: _Floats | None = None
    ) -> None: ...
    def embedding_weight(self, x: _Floats, w: Weight, ids: _Ids) -> None: ...
    def decode(
        self,
        h: _Floats,
        stack: Stack,
        ids: _Ids,
        keys: Sequence[_Floats],
        values: Sequence[_Floats],
        rows: _Starts,
        positions: _Starts,
    ) -> None: ...

class Sparse(Generates):
    def head_sampled(
        self,
        losses: _Floats,
        h: _Floats,
        w: _Floats,
        targets: _Ids,
        groups: _Starts,
        samples: _Ids,
        log_expected: _Floats,
        dh: _Floats | None = None,
        dw: _Floats | None = None,
        scale: float = 1.0,
        order: _Ids | None = None,
        index: _Starts | None = None,
    ) -> None: ...
    def adamw_rows(
        self,
        p: _Floats,
        m: _Floats,
        v: _Floats,
        grad: _Floats,
        rows: _Ids,
        *,
        grad_scale: float,
        beta1: float,
        beta2: float,
        step_size: float,
        eps: float,
        decay: float,
        root_bias2: float,
    ) -> None: ...
    def squared_norm_rows(
        self, x: _Floats, rows: _Ids, shares: NDArray[np.float64] | None = None
    ) -> float: ...
    def adamw_rest_rows(
        self,
        p: _Floats,
        m: _Floats,
        v: _Floats,
        rows: _Ids,
        last: _Ids,
        past: _Floats,
        *,
        beta1: float,
        beta2: float,
        eps: float,
    ) -> None: ...

class Momenta(Sparse):
    def lion_spans(
        self,
        p: _Floats,
        m: _Floats,
        grad: _Floats,
        spans: _Starts,
        *,
        grad_scale: float,
        beta1: float,
        beta2: float,
        step_size: float,
        decay: float,
    ) -> None: ...
    def sgd_spans(
        self,
        p: _Floats,
        m: _Floats,
        grad: _Floats,
        spans: _Starts,
        *,
        grad_scale: float,
        momentum: float,
        nesterov: bool,
        step_size: float,
        decay: float,
    ) -> None: ...
    def ema(self, average: _Floats, p: _Floats, rate: float) -> None: ...
    def muon_step(
        self,
        p: _Floats,
        m: _Floats,
        grad: _Floats,
        matrices: _Starts,
        step_sizes: _Floats,
        coefficients: _Floats,
        *,
        grad_scale: float,
        momentum: float,
        nesterov: bool,
        decay: float,
    ) -> None: ...

class Team(Momenta):
    def work_floats(
        self,
        groups: _Starts,
        T: int,
        D: int,
        H: int,
        K: int,
        F: int,
        V: int,
        S: int = 0,
        muon: bool = False,
        bf16: bool = False,
    ) -> int: ...
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
    def adamw_spans(
        self,
        p: _Floats,
        m: _Floats,
        v: _Floats,
        grad: _Floats,
        spans: _Starts,
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
    def head_bf16(
        self,
        losses: _Floats,
        h: _Bf16,
        w: _Floats,
        targets: _Ids,
        groups: _Starts,
        dh: _Floats | None = None,
        dw: _Floats | None = None,
        scale: float = 1.0,
        accumulate: bool = False,
    ) -> None: ...
