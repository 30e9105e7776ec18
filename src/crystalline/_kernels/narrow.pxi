# Part of team.pyx: products of bf16 operands.  NumPy has no bf16: arrays of it are uint16, the upper
# halves of float32.


cdef class Narrow(Attends):
    """What a team can do with bf16, where ``has_bf16``; else every method raises ValueError."""

    def to_bf16(self, uint16_t[::1] y, const float[::1] x):
        """y = x (n), rounded to the nearest, to even."""
        cdef cry_status status
        _same("to_bf16", "entries of y", y.shape[0], "entries of x", x.shape[0])
        if x.shape[0] == 0:
            return
        self._enter()
        with nogil:
            status = cry_to_bf16(&self.c, &y[0], &x[0], x.shape[0])
        self._leave("to_bf16", status)

    def matmul_bf16(self, y, const uint16_t[:, ::1] x, const float[:, ::1] w,
                    const float[:, ::1] init=None):
        """y (R, N) = init (R, N) + x (R, K) @ w (N, K).T, summed in float32; K even.

        y is float32, or without init bf16.
        """
        cdef int64_t R = x.shape[0], K = x.shape[1], N = w.shape[0]
        cdef cry_status status
        cdef _Result out = _Result("matmul_bf16", y, R, N)
        cdef const float *start = NULL
        _same("matmul_bf16", "columns of w", w.shape[1], "columns of x", K)
        if init is not None:
            _same("matmul_bf16", "rows of init", init.shape[0], "rows of y", R)
            _same("matmul_bf16", "columns of init", init.shape[1], "columns of y", N)
            start = &init[0, 0]
        self._reserve(self._product_floats(N, K), 0)
        self._enter()
        with nogil:
            status = cry_matmul_bf16(&self.c, out.wide, out.narrow, &x[0, 0], &w[0, 0], start, R, N, K)
        self._leave("matmul_bf16", status)

    def matmul_dx_bf16(self, dx, const uint16_t[:, ::1] dy, const float[:, ::1] w):
        """dx (R, K) = dy (R, N) @ w (N, K); N even; dx is float32 or bf16."""
        cdef int64_t R = dy.shape[0], N = dy.shape[1], K = w.shape[1]
        cdef cry_status status
        cdef _Result out = _Result("matmul_dx_bf16", dx, R, K)
        _same("matmul_dx_bf16", "rows of w", w.shape[0], "columns of dy", N)
        self._reserve(self._product_floats(K, N), 0)
        self._enter()
        with nogil:
            status = cry_matmul_dx_bf16(&self.c, out.wide, out.narrow, &dy[0, 0], &w[0, 0], R, N, K)
        self._leave("matmul_dx_bf16", status)

    def matmul_dw_bf16(self, float[:, ::1] dw, const uint16_t[:, ::1] dy, const uint16_t[:, ::1] x,
                       const int64_t[::1] groups, bint accumulate=False):
        """dw (N, K) = dy (R, N).T @ x (R, K), summed over rows by the tree of the 12 groups."""
        cdef int64_t R = dy.shape[0], N = dy.shape[1], K = x.shape[1]
        cdef cry_status status
        _same("matmul_dw_bf16", "rows of x", x.shape[0], "rows of dy", R)
        _same("matmul_dw_bf16", "rows of dw", dw.shape[0], "columns of dy", N)
        _same("matmul_dw_bf16", "columns of dw", dw.shape[1], "columns of x", K)
        _same("matmul_dw_bf16", "groups", groups.shape[0], "the number of starts", 13)
        self._reserve(self._product_floats(K, R), 0)
        self._enter()
        with nogil:
            status = cry_matmul_dw_bf16(&self.c, &dw[0, 0], &dy[0, 0], &x[0, 0], &groups[0], R, N, K,
                                        accumulate)
        self._leave("matmul_dw_bf16", status)

    def rmsnorm_bf16(self, uint16_t[:, ::1] y, float[::1] rrms, const float[:, ::1] x,
                     const float[::1] w, float eps):
        """``rmsnorm`` with y in bf16."""
        cdef cry_status status
        _same("rmsnorm_bf16", "entries of w", w.shape[0], "columns of x", x.shape[1])
        _same("rmsnorm_bf16", "rows of y", y.shape[0], "rows of x", x.shape[0])
        _same("rmsnorm_bf16", "columns of y", y.shape[1], "columns of x", x.shape[1])
        _same("rmsnorm_bf16", "entries of rrms", rrms.shape[0], "rows of x", x.shape[0])
        self._enter()
        with nogil:
            status = cry_rmsnorm_bf16(&self.c, &y[0, 0], &rrms[0], &x[0, 0], &w[0], x.shape[0],
                                      x.shape[1], eps)
        self._leave("rmsnorm_bf16", status)

    def swiglu_bf16(self, uint16_t[:, ::1] act, const uint16_t[:, ::1] gu):
        """``swiglu`` on bf16."""
        cdef cry_status status
        _same("swiglu_bf16", "columns of gu", gu.shape[1], "twice the columns of act", 2 * act.shape[1])
        _same("swiglu_bf16", "rows of gu", gu.shape[0], "rows of act", act.shape[0])
        self._enter()
        with nogil:
            status = cry_swiglu_bf16(&self.c, &act[0, 0], &gu[0, 0], act.shape[0], act.shape[1])
        self._leave("swiglu_bf16", status)

    def swiglu_bwd_act_bf16(self, uint16_t[:, ::1] dgu, uint16_t[:, ::1] act,
                            const uint16_t[:, ::1] gu):
        """``swiglu_bwd_act`` on bf16."""
        cdef cry_status status
        _same("swiglu_bwd_act_bf16", "columns of gu", gu.shape[1], "twice act's", 2 * act.shape[1])
        _same("swiglu_bwd_act_bf16", "columns of dgu", dgu.shape[1], "columns of gu", gu.shape[1])
        _same("swiglu_bwd_act_bf16", "rows of gu", gu.shape[0], "rows of act", act.shape[0])
        _same("swiglu_bwd_act_bf16", "rows of dgu", dgu.shape[0], "rows of act", act.shape[0])
        self._enter()
        with nogil:
            status = cry_swiglu_bwd_act_bf16(&self.c, &dgu[0, 0], &act[0, 0], &gu[0, 0],
                                             act.shape[0], act.shape[1])
        self._leave("swiglu_bwd_act_bf16", status)

    def from_bf16(self, float[::1] y, const uint16_t[::1] x):
        """y (n) = x, exactly."""
        cdef cry_status status
        _same("from_bf16", "entries of y", y.shape[0], "entries of x", x.shape[0])
        if x.shape[0] == 0:
            return
        self._enter()
        with nogil:
            status = cry_from_bf16(&self.c, &y[0], &x[0], x.shape[0])
        self._leave("from_bf16", status)

    def rope_bf16(self, float[:, ::1] y, const uint16_t[:, ::1] x, const float[:, ::1] cosine,
                  const float[:, ::1] sine, int64_t heads, int64_t T):
        """y = x (bf16) with the first ``heads`` heads of each row turned, row r at position r mod T."""
        cdef cry_status status
        _tables_reach("rope_bf16", y.shape, x.shape, cosine.shape, sine.shape, T)
        self._enter()
        with nogil:
            status = cry_rope_bf16(&self.c, &y[0, 0], &x[0, 0], &cosine[0, 0], &sine[0, 0],
                                   x.shape[0], x.shape[1], heads, 2 * cosine.shape[1], T)
        self._leave("rope_bf16", status)

    def rope_bwd_bf16(self, uint16_t[:, ::1] dx, const float[:, ::1] dy, const float[:, ::1] cosine,
                      const float[:, ::1] sine, int64_t heads, int64_t T):
        """dx (bf16) = dy with the heads turned back: the gradient of ``rope_bf16``."""
        cdef cry_status status
        _tables_reach("rope_bwd_bf16", dx.shape, dy.shape, cosine.shape, sine.shape, T)
        self._enter()
        with nogil:
            status = cry_rope_bwd_bf16(&self.c, &dx[0, 0], &dy[0, 0], &cosine[0, 0], &sine[0, 0],
                                       dy.shape[0], dy.shape[1], heads, 2 * cosine.shape[1], T)
        self._leave("rope_bwd_bf16", status)

    def rope_at_bf16(self, float[:, ::1] y, const uint16_t[:, ::1] x, const float[:, ::1] cosine,
                     const float[:, ::1] sine, int64_t heads, const int32_t[::1] positions):
        """``rope_bf16`` with row r at positions (R)[r]."""
        cdef cry_status status
        _tables_reach("rope_at_bf16", y.shape, x.shape, cosine.shape, sine.shape, 0)
        _same("rope_at_bf16", "positions", positions.shape[0], "rows of the operand", x.shape[0])
        self._enter()
        with nogil:
            status = cry_rope_at_bf16(&self.c, &y[0, 0], &x[0, 0], &cosine[0, 0], &sine[0, 0],
                                      x.shape[0], x.shape[1], heads, 2 * cosine.shape[1],
                                      &positions[0], cosine.shape[0])
        self._leave("rope_at_bf16", status)

    def rope_bwd_at_bf16(self, uint16_t[:, ::1] dx, const float[:, ::1] dy,
                         const float[:, ::1] cosine, const float[:, ::1] sine, int64_t heads,
                         const int32_t[::1] positions):
        """``rope_bwd_bf16`` with row r at positions (R)[r]."""
        cdef cry_status status
        _tables_reach("rope_bwd_at_bf16", dx.shape, dy.shape, cosine.shape, sine.shape, 0)
        _same("rope_bwd_at_bf16", "positions", positions.shape[0], "rows of the operand", dy.shape[0])
        self._enter()
        with nogil:
            status = cry_rope_bwd_at_bf16(&self.c, &dx[0, 0], &dy[0, 0], &cosine[0, 0], &sine[0, 0],
                                          dy.shape[0], dy.shape[1], heads, 2 * cosine.shape[1],
                                          &positions[0], cosine.shape[0])
        self._leave("rope_bwd_at_bf16", status)


cdef object _tables_reach(str op, const Py_ssize_t *to, const Py_ssize_t *of,
                          const Py_ssize_t *cosine, const Py_ssize_t *sine, int64_t T):
    """The shapes of both sides agree, and the tables have the T positions of their rows."""
    _same(op, "rows of the result", to[0], "rows of the operand", of[0])
    _same(op, "columns of the result", to[1], "columns of the operand", of[1])
    _same(op, "rows of sine", sine[0], "rows of cosine", cosine[0])
    _same(op, "columns of sine", sine[1], "columns of cosine", cosine[1])
    if min(T, of[0]) > cosine[0]:
        raise ValueError(f"{op}: {min(T, of[0])} positions are more than the {cosine[0]} of the tables")


cdef class _Result:
    """Where a product goes: a float32 or a bf16 array (rows, columns)."""

    cdef float *wide
    cdef uint16_t *narrow

    def __cinit__(self, str op, y, int64_t rows, int64_t columns):
        cdef float[:, ::1] wide
        cdef uint16_t[:, ::1] narrow
        _same(op, "rows of the result", y.shape[0], "rows of the operand", rows)
        _same(op, "columns of the result", y.shape[1], "columns of the product", columns)
        self.wide, self.narrow = NULL, NULL
        if y.dtype == np.uint16:
            narrow = y
            self.narrow = &narrow[0, 0]
        else:
            wide = y
            self.wide = &wide[0, 0]
