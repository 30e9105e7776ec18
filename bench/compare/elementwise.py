"""What moves memory: AdamW, RMSNorm, SwiGLU and softmax, beside a copy that moves the same bytes.

The limit is the bandwidth of that copy, half of the bytes read and half written, by as many
threads and over as many bytes in all, measured in turn with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compare.contest import OURS, Contender, Contest, Moving, Settings

EAGER = (Contender(OURS, OURS), Contender.tuned("torch", "torch"))
COMPILED = (Contender.tuned("torch compiled", "compiled"),)
# Floats moved: AdamW reads p, m, v, g and writes p, m, v; the others read rows and write rows.
CASES: list[tuple[str, tuple[int, ...], int]] = [
    ("AdamW", (5_700_000,), 7),
    ("RMSNorm", (3072, 256), 2),
    ("RMSNorm", (16384, 768), 2),
    ("SwiGLU", (3072, 688), 3),
    ("softmax", (3072, 10000), 2),
]
QUICK: list[tuple[str, tuple[int, ...], int]] = [CASES[1], ("softmax", (384, 2000), 2)]


def contests(s: Settings) -> list[Contest]:
    """All operations."""
    made = []
    for op, shape, floats in QUICK if s.quick else CASES:
        size = 4 * floats * int(np.prod(shape))
        contenders = EAGER + (COMPILED if op in ("RMSNorm", "SwiGLU") and not s.quick else ())
        made.append(
            Contest(
                f"{op} {' x '.join(map(str, shape))}", __name__, {"op": op, "shape": list(shape)},
                contenders, 1e-9 * size, "GB/s", Moving("copy", size, 1.0),
            )
        )  # fmt: skip
    return made


def build(who: str, case: dict[str, Any], threads: int) -> Callable[[], Any]:
    """One operation, its operands in place."""
    op, shape = case["op"], case["shape"]
    rng = np.random.default_rng(0)
    if op == "AdamW":
        arrays = [np.abs(rng.standard_normal(shape, np.float32)) for _ in range(4)]
    else:
        *rows, columns = shape
        wide = [*rows, 2 * columns if op == "SwiGLU" else columns]
        arrays = [rng.standard_normal(wide, np.float32)]
    arrays = [_aligned(a) for a in arrays]
    if who == OURS:
        return _ours(op, threads, arrays)
    return _torch(op, threads, arrays, who == "compiled")


def _aligned(a: Any) -> Any:
    """A copy that begins with a cache line, as the arrays of a model and of the limit's copy do."""
    line = 16  # floats
    room = np.empty(a.size + line, np.float32)
    begin = -(room.ctypes.data // 4) % line
    copy = room[begin : begin + a.size].reshape(a.shape)
    copy[...] = a
    return copy


def _ours(op: str, threads: int, arrays: list[Any]) -> Callable[[], Any]:
    from crystalline.team import make_team

    team, x = make_team(threads), arrays[0]
    if op == "AdamW":
        settings = {
            "grad_scale": 1.0, "beta1": 0.9, "beta2": 0.95, "step_size": 1e-3, "eps": 1e-8,
            "decay": 0.9999, "root_bias2": 1.0,
        }  # fmt: skip
        return lambda: team.adamw(*arrays, **settings)
    R, D = x.shape
    if op == "SwiGLU":
        act = _aligned(np.empty((R, D // 2), np.float32))
        return lambda: team.swiglu(act, x)
    y = _aligned(x)
    if op == "softmax":
        return lambda: team.softmax(y, x)
    rrms, w = np.empty(R, np.float32), np.ones(D, np.float32)
    return lambda: team.rmsnorm(y, rrms, x, w, 1e-5)


def _torch(op: str, threads: int, arrays: list[Any], compiled: bool) -> Callable[[], Any]:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    x = torch.from_numpy(arrays[0])
    if op == "AdamW":
        p = torch.nn.Parameter(x)
        p.grad = torch.from_numpy(arrays[3])
        optimizer = torch.optim.AdamW([p], 1e-3, betas=(0.9, 0.95), fused=True)
        return optimizer.step
    torch.set_grad_enabled(False)
    if op == "softmax":
        out = torch.empty_like(x)
        return lambda: torch.softmax(x, -1, out=out)
    w = torch.ones(x.shape[-1])

    def norm(x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, w.shape, w, 1e-5)

    def swiglu(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    f = norm if op == "RMSNorm" else swiglu
    call = torch.compile(f) if compiled else f
    return lambda: call(x)
