"""What crystalline.kernels refuses, and how it says so: both sides, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from case import draw, poison

import crystalline.kernels as ck
from crystalline.errors import UsageError

ONE = np.ones((2, 3), np.float32)
LOCKED = np.ones((2, 3), np.float32)
LOCKED.flags.writeable = False


def update(**options: float) -> None:
    """AdamW on arrays that nobody keeps."""
    ck.adamw(ONE.copy(), ONE.copy(), ONE.copy(), ONE, **({"lr": 1.0, "step": 1} | options))


def sampled(samples: list[int], log_expected: tuple[float, ...] = (0.0, 0.0)) -> None:
    """The loss among some of two classes."""
    ck.sampled_softmax(ONE, ONE, [0, 1], np.array(samples, np.int64), list(log_expected))


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: ck.softmax(ONE.astype(float)), TypeError, r"x is float64.*x\.astype"),
        (lambda: ck.softmax(np.arange(3)), TypeError, "x is int64"),
        (lambda: ck.softmax(ONE * 1j), TypeError, "complex64"),
        (lambda: ck.softmax([1j]), TypeError, "complex128"),
        (lambda: ck.softmax(["a"]), TypeError, "x is <U1"),
        (lambda: ck.softmax([1e39]), ValueError, "too large for float32"),
        (lambda: ck.softmax(np.ma.masked_array(ONE)), TypeError, "masked"),
        (lambda: ck.softmax(1.0), ValueError, r"x has shape \(\), but needs a last axis"),
        (lambda: ck.logsumexp(ONE[:, :0]), ValueError, r"\(2, 0\), but needs a last axis of 1"),
        (lambda: ck.softmax(ONE, out=ONE.astype(float)), TypeError, "out is float64"),
        (lambda: ck.softmax(ONE, out=[0]), TypeError, "out is list"),
        (lambda: ck.softmax(ONE, out=ONE[:1]), ValueError, r"\(1, 3\), but the result.*\(2, 3\)"),
        (lambda: ck.softmax(ONE, out=poison(3, 2).T), ValueError, "C-contiguous"),
        (lambda: ck.softmax(ONE, out=LOCKED), ValueError, "writeable"),
        (lambda: ck.softmax(ONE, isa="mmx"), UsageError, "mmx.*portable"),
        (lambda: ck.softmax(ONE, threads=0), UsageError, "threads is 0"),
        (lambda: ck.matmul(ONE, ONE), ValueError, "last axis of a is 3, but rows of b is 2"),
        (lambda: ck.matmul(ONE, ONE[0]), ValueError, "must be a matrix"),
        (lambda: ck.linear(ONE, ONE[:, :2]), ValueError, "of x is 3, but columns of w is 2"),
        (lambda: ck.linear(ONE, ONE, ONE), ValueError, r"init has shape \(2, 3\).*\(2, 2\)"),
        (lambda: ck.linear_backward(ONE, ONE, ONE), ValueError, r"dy has shape"),
        (lambda: ck.linear_backward(ONE[:, :2], ONE, ONE, out=ONE), TypeError, r"of 2: \(dx, dw\)"),
        (
            lambda: ck.linear_backward(ONE[:, :2], ONE, ONE, out=(LOCKED.copy(), ONE.astype(int))),
            TypeError, "dw is int64",
        ),
        (lambda: ck.cross_entropy(ONE, [0, 3]), ValueError, "0 to 3, but must be from -1 to 2"),
        (lambda: ck.cross_entropy(ONE, [0]), ValueError, r"targets has shape \(1,\).*\(2,\)"),
        (lambda: ck.cross_entropy(ONE, [0.0, 1.0]), TypeError, "targets is float64"),
        (lambda: ck.linear_cross_entropy(ONE, ONE, [0]), ValueError, r"\(1,\).*have \(2,\)"),
        (lambda: sampled([0, 0]), ValueError, "samples has 0 twice, but must be different"),
        (lambda: sampled([]), ValueError, r"samples has shape \(0,\), but must be \(S,\)"),
        (lambda: sampled([0, 2]), ValueError, "samples run from 0 to 2, but must be from 0 to 1"),
        (lambda: sampled([0], (0.0,)), ValueError, r"log_expected has shape \(1,\)"),
        (lambda: ck.embedding(ONE, [-1]), ValueError, "from -1 to -1, but must be from 0 to 1"),
        (lambda: ck.embedding(ONE[0], [0]), ValueError, r"must be \(V, D\)"),
        (lambda: ck.embedding_backward(ONE, [0], 5), ValueError, r"\(1,\), but must have \(2,\)"),
        (lambda: ck.rope(ONE, ONE, ONE), ValueError, r"must be \(\.\.\., T, H, Dh\)"),
        (lambda: ck.rope(ONE[None, :, :2], ONE, ONE), ValueError, r"must be \(1 or more, 1\)"),
        (lambda: ck.attention(ONE, ONE, ONE), ValueError, r"\(B, T, H, Dh\)"),
        (
            lambda: ck.attention(draw(1, 2, 3, 4), draw(1, 2, 2, 4), draw(1, 2, 2, 4)), ValueError,
            "K divide H",
        ),
        (lambda: ck.swiglu(ONE), ValueError, "must be even"),
        (lambda: ck.rmsnorm(ONE, ONE), ValueError, r"w has shape \(2, 3\), but must have \(3,\)"),
        (lambda: ck.rmsnorm(ONE, ONE[0], -1.0), ValueError, "eps is -1.0, but must be 0 or more"),
        (lambda: ck.rmsnorm(ONE, ONE[0], np.nan), ValueError, "eps is nan, but must be 0 or more"),
        (lambda: ck.adamw(ONE, ONE.copy(), ONE.copy(), ONE, lr=1, step=0), ValueError, "step is 0"),
        (lambda: ck.adamw(ONE, ONE, ONE, ONE, lr=1, step=1), ValueError, "overlap"),
        (lambda: ck.softmax(ONE, threads="2"), UsageError, "threads is '2', but must be a whole"),
        (lambda: ck.softmax(ONE, threads=2.5), UsageError, "threads is 2.5, but must be a whole"),
        (lambda: ck.softmax([[1, 2], [3]]), ValueError, "softmax: x is no array"),
        (lambda: ck.embedding(ONE, [[1], [1, 0]]), ValueError, "embedding: tokens is no array"),
        (lambda: ck.embedding(ONE, np.ma.masked_array([0])), TypeError, "tokens is a masked array"),
        (lambda: ck.embedding(ONE[:0], [0]), ValueError, "tokens holds ids, but there are none"),
        (
            lambda: ck.embedding_backward(ONE, [0, 0], 7.5), TypeError,
            "V is 7.5, but must be a whole number",
        ),
        (lambda: ck.embedding_backward(ONE[:0], [], -5), ValueError, "V is -5, but must be 0"),
        (
            lambda: ck.rope(ONE[None, :, :2], ONE[:, :1], ONE[:, :1], 0.5), TypeError,
            "position is 0.5, but must be a whole number",
        ),
        (
            lambda: ck.linear_cross_entropy(ONE, ONE[:0], [-1, -1]), ValueError,
            r"linear_cross_entropy: w has shape \(0, 3\), but needs a row",
        ),
        (lambda: update(step=1.5), TypeError, "step is 1.5, but must be a whole number"),
        (lambda: update(beta1=1.0), ValueError, "beta1 is 1.0, but must be from 0 to below 1"),
        (lambda: update(beta2=2.0), ValueError, "beta2 is 2.0, but must be from 0 to below 1"),
        (lambda: ck.adamw(None, ONE, ONE, ONE, lr=1, step=1), TypeError, "in place"),
    ],
)  # fmt: skip
def test_errors_name_both_sides(
    call: Callable[[], object], error: type[Exception], told: str
) -> None:
    before = ONE.copy()
    with pytest.raises(error, match=told):
        call()
    assert np.array_equal(ONE, before)


def test_outputs_beside_the_result_need_memory_of_their_own() -> None:
    memory, q = poison(2 * 3), draw(1, 2, 1, 3)
    whole, pair = memory.reshape(2, 3), memory[:2]
    for call in (
        lambda: ck.rmsnorm(ONE, ONE[0], out=whole, rrms=pair),
        lambda: ck.attention(q, q, q, out=memory.reshape(1, 2, 1, 3), lse=pair.reshape(1, 1, 2)),
        lambda: ck.linear_cross_entropy_backward(ONE, ONE, [0, 1], losses=pair, out=(whole, None)),
        lambda: ck.sampled_softmax_backward(
            ONE, ONE, [0, 1], [0], [0, 0], losses=pair, out=(whole, None)
        ),
    ):
        with pytest.raises(ValueError, match="memory of its own"):
            call()
