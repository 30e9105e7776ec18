# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""The kernels for NumPy arrays: shapes are checked, the interpreter lock is released, C is called."""

from libc.stdint cimport int32_t, int64_t, uint16_t

from cpython.pycapsule cimport PyCapsule_New

import numpy as np

from checks cimport *
from crystalline.kernels cimport *
from system cimport *

from crystalline.errors import UsageError
from crystalline.decoder.memory import arena

ISAS = ("portable", "avx2", "avx512")


cdef const cry_kernels *_table(isa) except NULL:
    cdef bytes name
    cdef const char *wanted = NULL
    cdef const cry_kernels *table = NULL
    if isa in ISAS:
        name = isa.encode()
        wanted = name
    if isa is None or isa in ISAS:
        table = cry_kernels_for(wanted)
    if table == NULL:
        raise UsageError(f"instruction set {isa!r} cannot run on this CPU; "
                         f"choose one of {', '.join(available_isas())}")
    return table


def available_isas():
    """The instruction sets this CPU can run, best last."""
    return tuple(isa for isa in ISAS if cry_kernels_for(isa.encode()) != NULL)


def kernel_table(isa=None):
    """The table of serial kernels of one of ISAS, or of the best for this CPU, for C code that is
    not linked with them: a PyCapsule named "crystalline.cry_kernels" that holds a
    ``const cry_kernels *`` (crystalline/kernels.h), good as long as the process lives.

    Raises UsageError where this CPU cannot run ``isa``.
    """
    return PyCapsule_New(<void *> _table(isa), "crystalline.cry_kernels", NULL)


# The package hands it on, so that PyCapsule_Import("crystalline.cry_kernels", 0) finds it.  By this
# way, because here the name is that of the C type.
globals()["cry_kernels"] = kernel_table()


def usable_cpus():
    """CPUs this process may use: the affinity mask cut by every cgroup quota above it."""
    return cry_usable_cpus()


def quota_cpus(root):
    """The cgroup quota in whole CPUs (0: none), reading /proc and /sys below ``root``."""
    return cry_quota_cpus(root.encode())


# The methods of a team, a file for each kind: every class adds to the one before.
include "pool.pxi"
include "products.pxi"
include "softmax.pxi"
include "rows.pxi"
include "attend.pxi"
include "narrow.pxi"
include "generate.pxi"
include "sparse.pxi"
include "momentum.pxi"


cdef class Team(Momenta):
    """What a pool can compute.  Arrays are float32 and C-contiguous; ids, targets int32; ``groups``
    holds 13 int64 row starts."""

    def work_floats(self, const int64_t[::1] groups, int64_t T, int64_t D, int64_t H, int64_t K,
                    int64_t F, int64_t V, int64_t S=0, bint muon=False, bint bf16=False):
        """Floats of work space that training such a decoder will reserve, with the full loss or (S
        above 0) the sampled one, whose head is float32, and by Muon or not; validation has the full
        loss, without gradients.  With ``bf16`` the full loss's head is of that precision."""
        cdef int64_t R, shared, scratch
        cdef int64_t[12] matrices
        cdef cry_attention shape
        _same("work_floats", "groups", groups.shape[0], "the number of starts", 13)
        R = groups[12]
        shape.T, shape.H, shape.K, shape.head_dim, shape.scale = T, H, K, D // H, 1.0
        E = (H + 2 * K) * shape.head_dim
        shared = max(cry_need_head_in(&self.c, &groups[0], D, V, S == 0, bf16 and S == 0),
                     cry_need_head_sampled(&self.c, &groups[0], D, S, 1))
        products = [(D, R), (F, R)]
        if bf16 or R > CRY_FEW_ROWS:  # fewer rows of float32 are multiplied where a weight lies
            products += [(E, D), (D, E), (D, D), (2 * F, D), (D, 2 * F), (D, F), (F, D)]
        for n, k in products:
            shared = max(shared, self._product_floats(n, k))
        scratch = cry_need_attention(&shape, 1)
        if muon:
            matrices = [0, D, D, 0, K * shape.head_dim, D, 0, F, D, 0, D, F]
            scratch = max(scratch, cry_need_muon(&self.c, matrices, 4))
        return shared + self.c.threads * scratch

    def head(self, float[::1] losses, const float[:, ::1] h, const float[:, ::1] w,
             const int32_t[::1] targets, const int64_t[::1] groups, float[:, ::1] dh=None,
             float[:, ::1] dw=None, float scale=1.0, bint accumulate=False):
        """losses (R) in nats of targets under softmax(h (R, D) @ w (V, D).T), 0 where target is -1.

        With dh and dw also their gradients, times ``scale``; dw is added to with ``accumulate``.
        """
        self._head("head", losses, h.shape[0], h.shape[1], &h[0, 0], NULL, w, targets, groups, dh, dw,
                   scale, accumulate)

    def head_bf16(self, float[::1] losses, const uint16_t[:, ::1] h, const float[:, ::1] w,
                  const int32_t[::1] targets, const int64_t[::1] groups, float[:, ::1] dh=None,
                  float[:, ::1] dw=None, float scale=1.0, bint accumulate=False):
        """``head`` with h, w and the logits' gradient in bf16; D even."""
        self._head("head_bf16", losses, h.shape[0], h.shape[1], NULL, &h[0, 0], w, targets, groups, dh,
                   dw, scale, accumulate)

    cdef object _head(self, str op, float[::1] losses, int64_t R, int64_t D, const float *h,
                      const uint16_t *narrow, const float[:, ::1] w, const int32_t[::1] targets,
                      const int64_t[::1] groups, float[:, ::1] dh, float[:, ::1] dw, float scale,
                      bint accumulate):
        cdef int64_t V = w.shape[0]
        cdef cry_status status
        cdef float *dh_at = NULL
        cdef float *dw_at = NULL
        _same(op, "columns of w", w.shape[1], "columns of h", D)
        _same(op, "entries of losses", losses.shape[0], "rows of h", R)
        _same(op, "targets", targets.shape[0], "rows of h", R)
        _same(op, "groups", groups.shape[0], "the number of starts", 13)
        if (dh is None) != (dw is None):
            raise ValueError(f"{op}: dh and dw come together, but only one is given")
        if dh is not None:
            _same(op, "rows of dh", dh.shape[0], "rows of h", R)
            _same(op, "columns of dh", dh.shape[1], "columns of h", D)
            _same(op, "rows of dw", dw.shape[0], "rows of w", V)
            _same(op, "columns of dw", dw.shape[1], "columns of w", D)
            dh_at, dw_at = &dh[0, 0], &dw[0, 0]
        self._reserve(cry_need_head_in(&self.c, &groups[0], D, V, dw_at != NULL, narrow != NULL), 0)
        self._enter()
        with nogil:
            if narrow != NULL:
                status = cry_head_bf16(&self.c, &losses[0], dh_at, dw_at, narrow, &w[0, 0], &targets[0],
                                       &groups[0], R, D, V, scale, accumulate)
            else:
                status = cry_head(&self.c, &losses[0], dh_at, dw_at, h, &w[0, 0], &targets[0],
                                  &groups[0], R, D, V, scale, accumulate)
        self._leave(op, status)

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

    def adamw_spans(self, float[::1] p, float[::1] m, float[::1] v, const float[::1] grad,
                    const int64_t[:, ::1] spans, *, float grad_scale, double beta1, double beta2,
                    float step_size, float eps, float decay, float root_bias2):
        """``adamw`` for the entries begin .. end of each row (begin, end, decays) of spans (S, 3),
        which rise; where ``decays`` is 0 there is no decay."""
        cdef cry_adamw c = cry_adamw(grad_scale, beta1, 1.0 - beta1, beta2, 1.0 - beta2, step_size, eps,
                                     decay, root_bias2)
        cdef cry_status status
        _same("adamw_spans", "entries of m", m.shape[0], "entries of p", p.shape[0])
        _same("adamw_spans", "entries of v", v.shape[0], "entries of p", p.shape[0])
        _same("adamw_spans", "entries of grad", grad.shape[0], "entries of p", p.shape[0])
        _same("adamw_spans", "columns of spans", spans.shape[1], "begin, end and decays", 3)
        _rising("adamw_spans", spans, p.shape[0])
        if p.shape[0] == 0 or spans.shape[0] == 0:
            return
        self._enter()
        with nogil:
            status = cry_adamw_spans(&self.c, &p[0], &m[0], &v[0], &grad[0], p.shape[0], &spans[0, 0],
                                     spans.shape[0], &c)
        self._leave("adamw_spans", status)

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
