"""Matrix products in fp32: the shapes of training (3072 tokens), squares, and a few rows.

x (M, K) W^T (K, N), dX = dY W and dW = dY^T X are written (M, K, N): rows, summed over, columns.
A few rows are what generation multiplies: weights that stay may be packed once, by us and by the
peers that can (oneDNN's and MKL's packed weights, which torch uses in compiled inference).
The limit is the FMA peak, and for a few rows the time to read the weights, where that is longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compare.contest import OURS, Contender, Contest, Settings

FORWARD = [(3072, 256, 768), (3072, 256, 1024), (3072, 1024, 256), (3072, 256, 10000)]
DX = [(3072, 10000, 256), (3072, 1024, 256)]
DW = [(768, 3072, 256), (1024, 3072, 256), (10000, 3072, 256)]
SQUARES = [(n, n, n) for n in (1024, 2048, 4096)]
SKINNY = [(M, 768, N) for N in (2304, 32000) for M in (1, 4, 12)]
KINDS = {"x W^T": FORWARD + SQUARES, "dX": DX, "dW": DW, "few rows": SKINNY}
QUICK = {"x W^T": FORWARD[:1], "dX": DX[1:], "dW": DW[:1], "few rows": SKINNY[:1]}

PLAIN = (Contender(OURS, OURS), Contender("NumPy", "numpy"), Contender("torch", "torch"))
PACKED = (Contender("torch, oneDNN packed", "onednn"), Contender("torch, MKL packed", "mkl"))


def contests(s: Settings) -> list[Contest]:
    """All shapes."""
    made = []
    for kind, shapes in (QUICK if s.quick else KINDS).items():
        for M, K, N in shapes:
            few, gflop = kind == "few rows", 2e-9 * M * K * N
            limit = s.peak(s.isa)
            if limit and few:
                gigabytes = 4e-9 * N * K
                read = s.bandwidth("read", 4 * N * K)
                limit = gflop / max(gflop / limit, gigabytes / read)
            made.append(
                Contest(
                    f"{kind} ({M}, {K}, {N})", __name__, {"kind": kind, "shape": [M, K, N]},
                    PLAIN + (PACKED if few else ()), gflop, "GFLOP/s", limit,
                )
            )  # fmt: skip
    return made


def build(who: str, case: dict[str, Any], threads: int) -> Callable[[], Any]:
    """One product, its operands and its output in place."""
    kind, (M, K, N) = case["kind"], case["shape"]
    rng = np.random.default_rng(0)
    # dX takes W (K, N) and dW takes dY (K, M), X (K, N), as training has them in memory.
    shapes = {"dX": [(M, K), (K, N)], "dW": [(K, M), (K, N)]}.get(kind, [(M, K), (N, K)])
    a, b = (rng.standard_normal(shape, np.float32) for shape in shapes)
    y = np.empty((M, N), np.float32)
    if who == OURS:
        return _ours(kind, threads, y, a, b)
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
    return lambda: torch.mm(x, columns, out=out)


def _ours(kind: str, threads: int, y: Any, a: Any, b: Any) -> Callable[[], Any]:
    from crystalline.team import make_team

    team = make_team(threads)
    if kind == "dX":
        return lambda: team.matmul_dx(y, a, b)
    if kind == "dW":
        # The 12 groups of a batch of 12 sequences, as a training step has them.
        groups = np.linspace(0, len(a), 13).astype(np.int64)
        return lambda: team.matmul_dw(y, a, b, groups)
    if kind == "few rows":
        panels = np.empty(team.packed_len(*b.shape), np.float32)
        team.pack_weight(panels, b)
        return lambda: team.matmul_packed(y, a, panels)
    return lambda: team.matmul(y, a, b)
