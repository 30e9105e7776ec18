"""Matrix products: the shapes of training (3072 tokens) and squares, fp32 and bf16; few rows, fp32.

x (M, K) W^T (K, N), dX = dY W and dW = dY^T X are written (M, K, N): rows, summed over, columns.
A few rows are what generation multiplies: weights that stay may be packed once, by us and by the
peers that can (oneDNN's and MKL's packed weights, which torch uses in compiled inference).  In bf16
weights are fp32 ones that we round and pack in the call, as a step does; torch gets them in bf16.
The limit is the FMA peak, or that of vdpbf16ps, and for a few rows the time to read the weights,
where that is longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from compare.contest import OURS, Contender, Contest, Moving, Settings

FORWARD = [(3072, 256, 768), (3072, 256, 1024), (3072, 1024, 256), (3072, 256, 10000)]
DX = [(3072, 10000, 256), (3072, 1024, 256)]
DW = [(768, 3072, 256), (1024, 3072, 256), (10000, 3072, 256)]
SQUARES = [(n, n, n) for n in (1024, 2048, 4096)]
SKINNY = [(M, 768, N) for N in (2304, 32000) for M in (1, 4, 12)]
FEW, UNPACKED = "few rows, packed", "few rows"
KINDS = {"x W^T": FORWARD + SQUARES, "dX": DX, "dW": DW, FEW: SKINNY, UNPACKED: SKINNY}
QUICK = {"x W^T": FORWARD[:1], "dX": DX[1:], "dW": DW[:1], FEW: SKINNY[:1], UNPACKED: SKINNY[:1]}

PLAIN = (Contender(OURS, OURS), Contender("NumPy", "numpy"), Contender("torch", "torch"))
PACKED = (Contender("torch, oneDNN packed", "onednn"), Contender("torch, MKL packed", "mkl"))


def contests(s: Settings) -> list[Contest]:
    """All shapes."""
    return [
        _contest(s, kind, shape, precision)
        for precision in s.precisions
        for kind, shapes in (QUICK if s.quick else KINDS).items()
        for shape in shapes
        if precision == "fp32" or kind not in (FEW, UNPACKED)
    ]


def _contest(s: Settings, kind: str, shape: tuple[int, int, int], precision: str) -> Contest:
    M, K, N = shape
    gflop, contenders = 2e-9 * M * K * N, PLAIN
    limit: float | Moving | None = s.peak(precision)
    if kind in (FEW, UNPACKED):
        contenders += PACKED if kind == FEW else ()
        limit = Moving("read", 4 * N * K, 4e-9 * N * K / gflop, s.peak() or math.inf)
    if precision == "bf16":  # which NumPy has not
        contenders = tuple(c for c in PLAIN if c.who != "numpy")
    return Contest(
        f"{kind} {shape}, {precision}", __name__,
        {"kind": kind, "shape": [M, K, N], "precision": precision}, contenders, gflop, "GFLOP/s",
        limit,
    )  # fmt: skip


def _on_huge_pages(shape: tuple[int, int]) -> Any:
    """An array as a training has its own; all contenders get the same."""
    from crystalline.decoder.memory import arena

    return arena(math.prod(shape)).reshape(shape)


def build(who: str, case: dict[str, Any], threads: int) -> Callable[[], Any]:
    """One product, its operands and its output in place."""
    kind, (M, K, N) = case["kind"], case["shape"]
    narrow = case["precision"] == "bf16"
    rng = np.random.default_rng(0)
    # dX takes W (K, N) and dW takes dY (K, M), X (K, N), as training has them in memory.
    shapes = {"dX": [(M, K), (K, N)], "dW": [(K, M), (K, N)]}.get(kind, [(M, K), (N, K)])
    a, b, y = (_on_huge_pages(shape) for shape in (*shapes, (M, N)))
    for x in (a, b):
        x[...] = rng.standard_normal(x.shape, np.float32)
    if who == OURS:
        return (_ours_bf16 if narrow else _ours)(kind, threads, y, a, b)
    left, right = (a.T if kind == "dW" else a), (b if kind in ("dX", "dW") else b.T)
    if who == "numpy":
        return lambda: np.matmul(left, right, out=y)
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    x, w, out = torch.from_numpy(left), torch.from_numpy(b), torch.from_numpy(y)
    if who == "onednn":
        panels = torch.ops.mkldnn._reorder_linear_weight(w, M)
        return lambda: torch.ops.mkldnn._linear_pointwise(x, panels, None, "none", [], "")
    if who == "mkl":
        panels = torch.ops.mkl._mkl_reorder_linear_weight(w, M)
        return lambda: torch.ops.mkl._mkl_linear(x, panels, w, None, M)
    columns = torch.from_numpy(right)
    if narrow:  # strides stay: what is transposed in memory stays so
        x, columns, out = (t.to(torch.bfloat16) for t in (x, columns, out))
    return lambda: torch.mm(x, columns, out=out)


def _groups(rows: int) -> Any:
    """The 12 groups of a batch of 12 sequences, as a training step has them."""
    return np.linspace(0, rows, 13).astype(np.int64)


def _ours(kind: str, threads: int, y: Any, a: Any, b: Any) -> Callable[[], Any]:
    from crystalline.team import make_team

    team = make_team(threads)
    if kind == "dX":
        return lambda: team.matmul_dx(y, a, b)
    if kind == "dW":
        groups = _groups(len(a))
        return lambda: team.matmul_dw(y, a, b, groups)
    if kind == FEW:
        weight = team.weight(b)
        return lambda: team.matmul_weight(y, a, weight)
    return lambda: team.matmul(y, a, b)


def _ours_bf16(kind: str, threads: int, y: Any, a: Any, b: Any) -> Callable[[], Any]:
    from crystalline.team import make_team

    team = make_team(threads)

    def rounded(x: Any) -> Any:
        narrow = np.empty(x.shape, np.uint16)
        team.to_bf16(narrow.reshape(-1), x.reshape(-1))
        return narrow

    x, out = rounded(a), np.empty(y.shape, np.uint16)
    if kind == "dX":
        return lambda: team.matmul_dx_bf16(out, x, b)
    if kind == "dW":  # whose sum over the tokens stays fp32
        beside, groups = rounded(b), _groups(len(a))
        return lambda: team.matmul_dw_bf16(y, x, beside, groups)
    return lambda: team.matmul_bf16(out, x, b)
