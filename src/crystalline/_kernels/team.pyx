# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""The kernels for NumPy arrays: shapes are checked, the interpreter lock is released, C is called."""

from libc.stdint cimport int32_t, int64_t

import numpy as np

from checks cimport *
from kernels cimport *

from crystalline.errors import UsageError
from crystalline.memory import arena

ISAS = ("portable", "avx2", "avx512")


def available_isas():
    """The instruction sets this CPU can run, best last."""
    return tuple(isa for isa in ISAS if cry_kernels_for(isa.encode()) != NULL)


def usable_cpus():
    """CPUs this process may use: the affinity mask cut by every cgroup quota above it."""
    return cry_usable_cpus()


def quota_cpus(root):
    """The cgroup quota in whole CPUs (0: none), reading /proc and /sys below ``root``."""
    return cry_quota_cpus(root.encode())


include "pool.pxi"


cdef class Team(Pool):
    """What a pool can compute.  Arrays are float32 and C-contiguous; ids, targets int32; ``groups``
    holds 13 int64 row starts."""

    def work_floats(self, const int64_t[::1] groups, int64_t T, int64_t D, int64_t H, int64_t K,
                    int64_t F, int64_t V):
        """Floats of work space that one training step of such a decoder will reserve."""
        cdef int64_t R, shared
        cdef cry_attention shape
        _same("work_floats", "groups", groups.shape[0], "the number of starts", 13)
        R = groups[12]
        shape.T, shape.H, shape.K, shape.head_dim, shape.scale = T, H, K, D // H, 1.0
        E = (H + 2 * K) * shape.head_dim
        shared = cry_need_head(&self.c, &groups[0], D, V, 1)
        for n, k in ((E, D), (D, E), (D, D), (2 * F, D), (D, 2 * F), (D, F), (F, D), (D, R), (F, R)):
            shared = max(shared, cry_need_matmul(&self.c, n, k))
        return shared + self.c.threads * cry_need_attention(&shape, 1)

    def exp(self, float[::1] y, const float[::1] x):
        """y = exp(x), within 2 ulp."""
        _same("exp", "y", y.shape[0], "x", x.shape[0])
        if x.shape[0]:
            self.c.kernels.exp(&y[0], &x[0], x.shape[0])

    def log(self, float[::1] y, const float[::1] x):
        """y = log(x) for positive normal x, within 2 ulp."""
        _same("log", "y", y.shape[0], "x", x.shape[0])
        if x.shape[0]:
            self.c.kernels.log(&y[0], &x[0], x.shape[0])

    def matmul(self, float[:, ::1] y, const float[:, ::1] x, const float[:, ::1] w,
               const float[:, ::1] init=None):
        """y (R, N) = init (R, N) + x (R, K) @ w (N, K).T; init may be None."""
        cdef int64_t R = x.shape[0], K = x.shape[1], N = w.shape[0]
        cdef cry_status status
        cdef const float *start = NULL
        _same("matmul", "columns of w", w.shape[1], "columns of x", K)
        _same("matmul", "rows of y", y.shape[0], "rows of x", R)
        _same("matmul", "columns of y", y.shape[1], "rows of w", N)
        if init is not None:
            _same("matmul", "rows of init", init.shape[0], "rows of y", R)
            _same("matmul", "columns of init", init.shape[1], "columns of y", N)
            start = &init[0, 0]
        self._reserve(cry_need_matmul(&self.c, N, K), 0)
        self._enter()
        with nogil:
            status = cry_matmul(&self.c, &y[0, 0], &x[0, 0], &w[0, 0], start, R, N, K)
        self._leave("matmul", status)

    def packed_len(self, int64_t N, int64_t K):
        """Floats that ``pack_weight`` needs for a weight (N, K)."""
        return cry_need_matmul(&self.c, N, K)

    def pack_weight(self, float[::1] panels, const float[:, ::1] w):
        """panels = w (N, K) in the order in which ``matmul_packed`` reads it."""
        cdef cry_status status
        _same("pack_weight", "panels", panels.shape[0], "packed_len(N, K)",
              cry_need_matmul(&self.c, w.shape[0], w.shape[1]))
        self._enter()
        with nogil:
            status = cry_pack_weight(&self.c, &panels[0], &w[0, 0], w.shape[0], w.shape[1])
        self._leave("pack_weight", status)

    def matmul_packed(self, float[:, ::1] y, const float[:, ::1] x, const float[::1] panels,
                      const float[:, ::1] init=None):
        """``matmul`` with a weight packed before: the same bits."""
        cdef int64_t R = x.shape[0], K = x.shape[1], N = y.shape[1]
        cdef cry_status status
        cdef const float *start = NULL
        _same("matmul_packed", "panels", panels.shape[0], "packed_len(N, K)",
              cry_need_matmul(&self.c, N, K))
        _same("matmul_packed", "rows of y", y.shape[0], "rows of x", R)
        if init is not None:
            _same("matmul_packed", "rows of init", init.shape[0], "rows of y", R)
            _same("matmul_packed", "columns of init", init.shape[1], "columns of y", N)
            start = &init[0, 0]
        self._enter()
        with nogil:
            status = cry_matmul_packed(&self.c, &y[0, 0], &x[0, 0], &panels[0], start, R, N, K)
        self._leave("matmul_packed", status)

    def matmul_dx(self, float[:, ::1] dx, const float[:, ::1] dy, const float[:, ::1] w):
        """dx (R, K) = dy (R, N) @ w (N, K)."""
        cdef int64_t R = dy.shape[0], N = dy.shape[1], K = w.shape[1]
        cdef cry_status status
        _same("matmul_dx", "rows of w", w.shape[0], "columns of dy", N)
        _same("matmul_dx", "rows of dx", dx.shape[0], "rows of dy", R)
        _same("matmul_dx", "columns of dx", dx.shape[1], "columns of w", K)
        self._reserve(cry_need_matmul(&self.c, K, N), 0)
        self._enter()
        with nogil:
            status = cry_matmul_dx(&self.c, &dx[0, 0], &dy[0, 0], &w[0, 0], R, N, K)
        self._leave("matmul_dx", status)

    def matmul_dw(self, float[:, ::1] dw, const float[:, ::1] dy, const float[:, ::1] x,
                  const int64_t[::1] groups, bint accumulate=False):
        """dw (N, K) = dy (R, N).T @ x (R, K), summed over rows by the tree of the 12 groups."""
        cdef int64_t R = dy.shape[0], N = dy.shape[1], K = x.shape[1]
        cdef cry_status status
        _same("matmul_dw", "rows of x", x.shape[0], "rows of dy", R)
        _same("matmul_dw", "rows of dw", dw.shape[0], "columns of dy", N)
        _same("matmul_dw", "columns of dw", dw.shape[1], "columns of x", K)
        _same("matmul_dw", "groups", groups.shape[0], "the number of starts", 13)
        self._reserve(cry_need_matmul(&self.c, K, R), 0)
        self._enter()
        with nogil:
            status = cry_matmul_dw(&self.c, &dw[0, 0], &dy[0, 0], &x[0, 0], &groups[0], R, N, K,
                                   accumulate)
        self._leave("matmul_dw", status)

    def rmsnorm(self, float[:, ::1] y, float[::1] rrms, const float[:, ::1] x, const float[::1] w,
                float eps):
        """y (R, D) = x rrms w, rrms (R) = 1 / sqrt(mean(x^2) + eps)."""
        cdef cry_status status
        _same("rmsnorm", "entries of w", w.shape[0], "columns of x", x.shape[1])
        _same("rmsnorm", "rows of y", y.shape[0], "rows of x", x.shape[0])
        _same("rmsnorm", "columns of y", y.shape[1], "columns of x", x.shape[1])
        _same("rmsnorm", "entries of rrms", rrms.shape[0], "rows of x", x.shape[0])
        self._enter()
        with nogil:
            status = cry_rmsnorm(&self.c, &y[0, 0], &rrms[0], &x[0, 0], &w[0], x.shape[0],
                                 x.shape[1], eps)
        self._leave("rmsnorm", status)

    def rmsnorm_bwd(self, float[:, ::1] dx, float[::1] dw, const float[:, ::1] dy,
                    const float[:, ::1] x, const float[::1] w, const float[::1] rrms,
                    const int64_t[::1] groups, bint add=False, bint accumulate=False):
        """dx (R, D) gets (with ``add``: also keeps) the gradient through the norm; dw (D) its sum."""
        cdef int64_t R = x.shape[0], D = x.shape[1]
        cdef cry_status status
        _same("rmsnorm_bwd", "entries of w", w.shape[0], "columns of x", D)
        _same("rmsnorm_bwd", "entries of dw", dw.shape[0], "columns of x", D)
        _same("rmsnorm_bwd", "rows of dx", dx.shape[0], "rows of x", R)
        _same("rmsnorm_bwd", "columns of dx", dx.shape[1], "columns of x", D)
        _same("rmsnorm_bwd", "rows of dy", dy.shape[0], "rows of x", R)
        _same("rmsnorm_bwd", "columns of dy", dy.shape[1], "columns of x", D)
        _same("rmsnorm_bwd", "entries of rrms", rrms.shape[0], "rows of x", R)
        _same("rmsnorm_bwd", "groups", groups.shape[0], "the number of starts", 13)
        self._reserve(cry_need_rmsnorm_bwd(D), 0)
        self._enter()
        with nogil:
            status = cry_rmsnorm_bwd(&self.c, &dx[0, 0], &dw[0], &dx[0, 0] if add else NULL,
                                     &dy[0, 0], &x[0, 0], &w[0], &rrms[0], &groups[0], R, D,
                                     accumulate)
        self._leave("rmsnorm_bwd", status)

    def rope(self, float[:, ::1] x, const float[:, ::1] cosine, const float[:, ::1] sine,
             int64_t heads, int64_t T, int64_t position=0, bint inverse=False):
        """Turns the first ``heads`` heads of each row of x, row r at position + r mod T."""
        cdef cry_status status
        _same("rope", "rows of sine", sine.shape[0], "rows of cosine", cosine.shape[0])
        _same("rope", "columns of sine", sine.shape[1], "columns of cosine", cosine.shape[1])
        if position > cosine.shape[0] - min(T, x.shape[0]):
            raise ValueError(f"rope: position {position} + {T} rows is past the "
                             f"{cosine.shape[0]} positions of the tables")
        self._enter()
        with nogil:
            status = cry_rope(&self.c, &x[0, 0], &cosine[0, 0], &sine[0, 0], x.shape[0], x.shape[1],
                              heads, 2 * cosine.shape[1], position, T, inverse)
        self._leave("rope", status)

    def attention(self, float[:, ::1] out, float[::1] lse, const float[:, ::1] qkv, int64_t T,
                  int64_t H, int64_t K, const int64_t[::1] lengths=None):
        """out (B T, H Dh), lse (B H T) from qkv (B T, (H + 2 K) Dh): causal, grouped queries.

        Rows of sequence b from lengths (B)[b] on are padding: their out is zero.
        """
        cdef cry_status status
        cdef cry_attention shape = _shape("attention", qkv, T, H, K)
        _same("attention", "rows of out", out.shape[0], "rows of qkv", qkv.shape[0])
        _same("attention", "columns of out", out.shape[1], "heads x width", H * shape.head_dim)
        _same("attention", "entries of lse", lse.shape[0], "rows x heads", qkv.shape[0] * H)
        cdef const int64_t *ends = _lengths("attention", lengths, qkv.shape[0] // T)
        self._reserve(0, cry_need_attention(&shape, 0))
        self._enter()
        with nogil:
            status = cry_attention_fwd(&self.c, &out[0, 0], &lse[0], &qkv[0, 0], qkv.shape[0] // T,
                                       &shape, ends)
        self._leave("attention", status)

    def attention_bwd(self, float[:, ::1] dqkv, const float[:, ::1] dout, const float[:, ::1] out,
                      const float[:, ::1] qkv, const float[::1] lse, int64_t T, int64_t H, int64_t K,
                      const int64_t[::1] lengths=None):
        """dqkv, shaped like qkv, from dout, shaped like out, and what ``attention`` was given."""
        cdef cry_status status
        cdef cry_attention shape = _shape("attention_bwd", qkv, T, H, K)
        _same("attention_bwd", "rows of dqkv", dqkv.shape[0], "rows of qkv", qkv.shape[0])
        _same("attention_bwd", "columns of dqkv", dqkv.shape[1], "columns of qkv", qkv.shape[1])
        for rows, columns in ((dout.shape[0], dout.shape[1]), (out.shape[0], out.shape[1])):
            _same("attention_bwd", "rows of out or dout", rows, "rows of qkv", qkv.shape[0])
            _same("attention_bwd", "columns of out or dout", columns, "heads x width",
                  H * shape.head_dim)
        _same("attention_bwd", "entries of lse", lse.shape[0], "rows x heads", qkv.shape[0] * H)
        cdef const int64_t *ends = _lengths("attention_bwd", lengths, qkv.shape[0] // T)
        self._reserve(0, cry_need_attention(&shape, 1))
        self._enter()
        with nogil:
            status = cry_attention_bwd(&self.c, &dqkv[0, 0], &dout[0, 0], &out[0, 0], &qkv[0, 0],
                                       &lse[0], qkv.shape[0] // T, &shape, ends)
        self._leave("attention_bwd", status)

    def attention_cached(self, float[:, ::1] out, const float[:, ::1] qkv, float[:, :, ::1] keys,
                         float[:, :, ::1] values, int64_t H, int64_t position):
        """New rows qkv join the cache, keys (K, Dh, C) and values (K, C, Dh up to 32), and attend."""
        cdef int64_t K = keys.shape[0], capacity = keys.shape[2], rows = qkv.shape[0]
        cdef cry_status status
        cdef cry_attention shape = _shape("attention_cached", qkv, 1, H, K)
        _same("attention_cached", "width of keys", keys.shape[1], "width of a head", shape.head_dim)
        _same("attention_cached", "heads of values", values.shape[0], "heads of keys", K)
        _same("attention_cached", "positions of values", values.shape[1], "of keys", capacity)
        _same("attention_cached", "width of values", values.shape[2], "head width up to 32",
              (shape.head_dim + 31) // 32 * 32)
        _same("attention_cached", "rows of out", out.shape[0], "rows of qkv", rows)
        _same("attention_cached", "columns of out", out.shape[1], "heads x width",
              H * shape.head_dim)
        if position < 0 or rows > capacity or position > capacity - rows:
            raise ValueError(f"attention_cached: {rows} rows from position {position} are "
                             f"outside the cache's {capacity}")
        self._reserve(0, cry_need_attention(&shape, 0))
        self._enter()
        with nogil:
            status = cry_attention_with_cache(&self.c, &out[0, 0], &qkv[0, 0], &keys[0, 0, 0],
                                              &values[0, 0, 0], &shape, rows, position, capacity)
        self._leave("attention_cached", status)

    def swiglu(self, float[:, ::1] act, const float[:, ::1] gu):
        """act (R, F) = silu(gate) * up, gu (R, 2 F) = [gate, up]."""
        cdef cry_status status
        _same("swiglu", "columns of gu", gu.shape[1], "twice the columns of act", 2 * act.shape[1])
        _same("swiglu", "rows of gu", gu.shape[0], "rows of act", act.shape[0])
        self._enter()
        with nogil:
            status = cry_swiglu(&self.c, &act[0, 0], &gu[0, 0], act.shape[0], act.shape[1])
        self._leave("swiglu", status)

    def swiglu_bwd(self, float[:, ::1] dgu, const float[:, ::1] dact, const float[:, ::1] gu):
        """dgu (R, 2 F), which may be gu itself, from dact (R, F)."""
        cdef cry_status status
        _same("swiglu_bwd", "columns of gu", gu.shape[1], "twice dact's", 2 * dact.shape[1])
        _same("swiglu_bwd", "columns of dgu", dgu.shape[1], "columns of gu", gu.shape[1])
        _same("swiglu_bwd", "rows of gu", gu.shape[0], "rows of dact", dact.shape[0])
        _same("swiglu_bwd", "rows of dgu", dgu.shape[0], "rows of dact", dact.shape[0])
        self._enter()
        with nogil:
            status = cry_swiglu_bwd(&self.c, &dgu[0, 0], &dact[0, 0], &gu[0, 0], dact.shape[0],
                                    dact.shape[1])
        self._leave("swiglu_bwd", status)

    def embedding(self, float[:, ::1] x, const float[:, ::1] w, const int32_t[::1] ids):
        """x (R, D) = w (V, D)[ids]."""
        cdef cry_status status
        _same("embedding", "columns of x", x.shape[1], "columns of w", w.shape[1])
        _same("embedding", "rows of x", x.shape[0], "ids", ids.shape[0])
        self._enter()
        with nogil:
            status = cry_embedding(&self.c, &x[0, 0], &w[0, 0], &ids[0], ids.shape[0], w.shape[1],
                                   w.shape[0])
        self._leave("embedding", status)

    def embedding_bwd(self, float[:, ::1] dw, const float[:, ::1] dx, const int32_t[::1] ids,
                      const int64_t[::1] groups, int32_t[::1] order, int64_t[::1] index,
                      bint accumulate=False):
        """dw (V, D) sums the rows of dx (R, D) by token; order (R), index (V + 1) are work space."""
        cdef cry_status status
        _same("embedding_bwd", "columns of dw", dw.shape[1], "columns of dx", dx.shape[1])
        _same("embedding_bwd", "rows of dx", dx.shape[0], "ids", ids.shape[0])
        _same("embedding_bwd", "order", order.shape[0], "ids", ids.shape[0])
        _same("embedding_bwd", "index", index.shape[0], "rows of dw + 1", dw.shape[0] + 1)
        _same("embedding_bwd", "groups", groups.shape[0], "the number of starts", 13)
        if order.shape[0] and &order[0] < &ids[0] + ids.shape[0] and &ids[0] < &order[0] + order.shape[0]:
            raise ValueError("embedding_bwd: order overlaps ids; give it memory of its own")
        self._enter()
        with nogil:
            status = cry_embedding_bwd(&self.c, &dw[0, 0], &dx[0, 0], &ids[0], &groups[0],
                                       ids.shape[0], dw.shape[1], dw.shape[0], accumulate,
                                       &order[0], &index[0])
        self._leave("embedding_bwd", status)

    def head(self, float[::1] losses, const float[:, ::1] h, const float[:, ::1] w,
             const int32_t[::1] targets, const int64_t[::1] groups, float[:, ::1] dh=None,
             float[:, ::1] dw=None, float scale=1.0, bint accumulate=False):
        """losses (R) in nats of targets under softmax(h (R, D) @ w (V, D).T), 0 where target is -1.

        With dh and dw also their gradients, times ``scale``; dw is added to with ``accumulate``.
        """
        cdef int64_t R = h.shape[0], D = h.shape[1], V = w.shape[0]
        cdef cry_status status
        cdef float *dh_at = NULL
        cdef float *dw_at = NULL
        _same("head", "columns of w", w.shape[1], "columns of h", D)
        _same("head", "entries of losses", losses.shape[0], "rows of h", R)
        _same("head", "targets", targets.shape[0], "rows of h", R)
        _same("head", "groups", groups.shape[0], "the number of starts", 13)
        if (dh is None) != (dw is None):
            raise ValueError("head: dh and dw come together, but only one is given")
        if dh is not None:
            _same("head", "rows of dh", dh.shape[0], "rows of h", R)
            _same("head", "columns of dh", dh.shape[1], "columns of h", D)
            _same("head", "rows of dw", dw.shape[0], "rows of w", V)
            _same("head", "columns of dw", dw.shape[1], "columns of w", D)
            dh_at, dw_at = &dh[0, 0], &dw[0, 0]
        self._reserve(cry_need_head(&self.c, &groups[0], D, V, dw_at != NULL), 0)
        self._enter()
        with nogil:
            status = cry_head(&self.c, &losses[0], dh_at, dw_at, &h[0, 0], &w[0, 0], &targets[0],
                              &groups[0], R, D, V, scale, accumulate)
        self._leave("head", status)

    def adamw(self, float[::1] p, float[::1] m, float[::1] v, const float[::1] grad, *,
              float grad_scale, double beta1, double beta2, float step_size, float eps,
              float decay, float root_bias2):
        """One AdamW update of p, m, v (n) in place; the formula stands in ``cry_adamw``."""
        cdef cry_adamw c = cry_adamw(grad_scale, beta1, 1.0 - beta1, beta2, 1.0 - beta2, step_size, eps,
                                     decay, root_bias2)
        cdef cry_status status
        for n in (m.shape[0], v.shape[0], grad.shape[0]):
            _same("adamw", "entries of m, v or grad", n, "entries of p", p.shape[0])
        if p.shape[0] == 0:
            return
        self._enter()
        with nogil:
            status = cry_adamw_step(&self.c, &p[0], &m[0], &v[0], &grad[0], p.shape[0], &c)
        self._leave("adamw", status)

    def squared_norm(self, const float[::1] x, double[::1] shares=None):
        """The sum of x^2, by a fixed tree; ``shares`` (12) gets the parts of the spheres, each of
        which has a twelfth of x."""
        cdef double[13] sums
        cdef cry_status status = CRY_OK
        cdef int g
        for g in range(13):
            sums[g] = 0
        if x.shape[0]:
            self._enter()
            with nogil:
                status = cry_squared_norm(&self.c, sums, &x[0], x.shape[0])
            self._leave("squared_norm", status)
        if shares is not None:
            _same("squared_norm", "shares", shares.shape[0], "the number of spheres", 12)
            for g in range(12):
                shares[g] = sums[g]
        return sums[12]

    def touch(self, float[::1] x):
        """Writes a zero into every page of x, each by the thread that will mostly work there, so
        that the system puts the page near to it."""
        cdef cry_status status = CRY_OK
        if x.shape[0]:
            self._enter()
            with nogil:
                status = cry_touch(&self.c, &x[0], x.shape[0])
            self._leave("touch", status)
