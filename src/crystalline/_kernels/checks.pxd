# What is checked before the kernels are called: errors name the operation and both sides.
from libc.stdint cimport int32_t, int64_t

from crystalline.kernels cimport *


cdef inline object _same(str op, str left, Py_ssize_t a, str right, Py_ssize_t b):
    if a != b:
        raise ValueError(f"{op}: {left} is {a}, but {right} is {b}")


cdef inline object _apart(str op, str left, const int32_t[::1] a, str right, const int32_t[::1] b):
    if a.shape[0] and b.shape[0] and &a[0] < &b[0] + b.shape[0] and &b[0] < &a[0] + a.shape[0]:
        raise ValueError(f"{op}: {left} overlaps {right}; give it memory of its own")


cdef inline object _rising(str op, const int64_t[:, ::1] spans, int64_t n):
    """That spans (S, 3) of begin, end and a mark rise inside 0 .. n without overlapping."""
    cdef int64_t i, past = 0
    for i in range(spans.shape[0]):
        if not past <= spans[i, 0] <= spans[i, 1] <= n:
            raise ValueError(f"{op}: span {i} is {spans[i, 0]} .. {spans[i, 1]}, "
                             f"expected within {past} .. {n}")
        past = spans[i, 1]


cdef inline object _check(str op, cry_status status):
    if status == CRY_OK:
        return
    raise ValueError(op + ": " + {
        CRY_BAD_SHAPE: "a size is zero, negative or does not fit the others",
        CRY_BAD_GROUPS: "the 13 group starts must rise from 0 to the number of rows",
        CRY_BAD_INDEX: "a token id or target is outside the vocabulary, or a position outside the tables",
        CRY_NO_SCRATCH: "the team has too little work space",
        CRY_BAD_ISA: "needs a CPU with AVX512_BF16; see has_bf16",
        CRY_BAD_LIST: "rows and samples must rise strictly inside the vocabulary",
    }[status])


cdef inline cry_attention _shape(str op, const float[:, ::1] qkv, int64_t T, int64_t H, int64_t K) except *:
    cdef int64_t heads
    if max(H, K) > qkv.shape[1] or T > qkv.shape[0]:
        raise ValueError(f"{op}: T {T}, heads {H}, key/value heads {K} are more than qkv's "
                         f"({qkv.shape[0]}, {qkv.shape[1]}) can hold")
    heads = H + 2 * K
    if T < 1 or H < 1 or K < 1 or H % K:
        raise ValueError(f"{op}: T {T}, heads {H}, key/value heads {K} must be positive and "
                         "key/value heads divide heads")
    if qkv.shape[0] % T or qkv.shape[1] % heads:
        raise ValueError(f"{op}: qkv is ({qkv.shape[0]}, {qkv.shape[1]}), but must be "
                         f"(a multiple of {T}, a multiple of {heads})")
    cdef inline cry_attention shape
    shape.T, shape.H, shape.K, shape.head_dim = T, H, K, qkv.shape[1] // heads
    shape.scale = <float> ((<double> shape.head_dim) ** -0.5)
    return shape


cdef inline const int64_t *_lengths(str op, const int64_t[::1] lengths, int64_t B) except? NULL:
    if lengths is None:
        return NULL
    _same(op, "lengths", lengths.shape[0], "the number of sequences", B)
    return &lengths[0] if B else NULL


cdef inline object _windows(str op, const int64_t[::1] starts, const int64_t[::1] lengths, int64_t R):
    """That starts (W + 1) rise from 0 to R, and lengths (W) are no more than the rows between."""
    cdef int64_t w, W = starts.shape[0] - 1
    if W < 0 or starts[0] != 0 or starts[W] != R:
        raise ValueError(f"{op}: starts must rise from 0 to the number of rows, {R}")
    if lengths is not None:
        _same(op, "lengths", lengths.shape[0], "the number of windows", W)
    for w in range(W):
        if starts[w] > starts[w + 1]:
            raise ValueError(f"{op}: start {w} is {starts[w]}, but start {w + 1} is {starts[w + 1]}")
        if lengths is not None and not 0 <= lengths[w] <= starts[w + 1] - starts[w]:
            raise ValueError(f"{op}: length {w} is {lengths[w]}, but window {w} has "
                             f"{starts[w + 1] - starts[w]} rows")
