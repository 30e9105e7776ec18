"""The kernels for NumPy users: ``import crystalline.kernels as ck``; ``ck.softmax(x)``.

Every function takes ``threads=`` (default: as many as this process may use, or what
CRYSTALLINE_THREADS says) and ``isa=`` ("portable", "avx2", "avx512"; default: what CRYSTALLINE_ISA
says, or the best). Neither changes one bit of a result. Teams of threads are kept between calls;
threads of Python may call at once.

Numbers come in as float32 or as any type whose values all are float32 (float16, bool, small
integers), in any layout; lists of Python numbers are rounded to float32. float64 arrays are refused
(TypeError), because rounding them would lose digits without a word. ``out=`` must be a float32,
C-contiguous, writeable array of the result's shape (else TypeError, ValueError); a function with
several results takes a tuple, in which None stands for a new array. Inputs may overlap outputs: the
result is as if they did not, at the price of a copy where the kernel could not work in place.

Results smaller than 2^-126 are zero, and such numbers are taken for zero (the team flushes
denormals). Infinities and NaN give what IEEE arithmetic gives. Sums along a row run in 16 lanes;
sums over rows in twelve even spans, then a fixed tree (docs/numpy_kernels.md).
"""

from crystalline.decoder.positions import rope_tables
from crystalline.numpy_kernels.layers import (
    adamw,
    attention,
    attention_backward,
    embedding,
    embedding_backward,
    rmsnorm,
    rmsnorm_backward,
    rope,
    rope_backward,
    squared_norm,
    swiglu,
    swiglu_backward,
)
from crystalline.numpy_kernels.products import (
    linear,
    linear_backward,
    linear_cross_entropy,
    linear_cross_entropy_backward,
    matmul,
    matmul_backward,
)
from crystalline.numpy_kernels.sampled import sampled_softmax, sampled_softmax_backward
from crystalline.numpy_kernels.soft import (
    cross_entropy,
    cross_entropy_backward,
    exp,
    log,
    log_softmax,
    log_softmax_backward,
    logsumexp,
    softmax,
    softmax_backward,
)

__all__ = [
    "adamw", "attention", "attention_backward", "cross_entropy", "cross_entropy_backward",
    "embedding", "embedding_backward", "exp", "linear", "linear_backward", "linear_cross_entropy",
    "linear_cross_entropy_backward", "log", "log_softmax", "log_softmax_backward", "logsumexp",
    "matmul", "matmul_backward", "rmsnorm", "rmsnorm_backward", "rope", "rope_backward",
    "rope_tables", "sampled_softmax", "sampled_softmax_backward", "softmax", "softmax_backward",
    "squared_norm", "swiglu", "swiglu_backward",
]  # fmt: skip
