# Part of team.pyx: matrix products.


cdef class Products(Pool):
    """What a pool can multiply."""

    cdef int64_t _product_floats(self, int64_t N, int64_t K):
        """Floats that a product needs, or is faster with."""
        cdef int64_t need = cry_need_matmul(&self.c, N, K)
        owned = need <= CRY_OWN_PANELS and self.c.threads <= CRY_OWNERS
        return need * self.c.threads if owned else need

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
        if R > CRY_FEW_ROWS:  # fewer are multiplied where w lies
            self._reserve(self._product_floats(N, K), 0)
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
        if R > CRY_FEW_ROWS:
            self._reserve(self._product_floats(K, N), 0)
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
        self._reserve(self._product_floats(K, R), 0)
        self._enter()
        with nogil:
            status = cry_matmul_dw(&self.c, &dw[0, 0], &dy[0, 0], &x[0, 0], &groups[0], R, N, K,
                                   accumulate)
        self._leave("matmul_dw", status)

    def matmul_swiglu(self, float[:, ::1] gu, float[:, ::1] act, const float[:, ::1] x,
                      const float[:, ::1] w):
        """gu (R, 2 F) = [gate, up] = x (R, K) @ w (2 F, K).T, act (R, F) = silu(gate) * up."""
        cdef int64_t R = x.shape[0], K = x.shape[1], F = act.shape[1]
        cdef cry_status status
        _same("matmul_swiglu", "columns of w", w.shape[1], "columns of x", K)
        _same("matmul_swiglu", "rows of gu", gu.shape[0], "rows of x", R)
        _same("matmul_swiglu", "rows of act", act.shape[0], "rows of x", R)
        _same("matmul_swiglu", "columns of gu", gu.shape[1], "rows of w", w.shape[0])
        _same("matmul_swiglu", "columns of gu", gu.shape[1], "twice the columns of act", 2 * F)
        if R > CRY_FEW_ROWS:
            self._reserve(self._product_floats(2 * F, K), 0)
        self._enter()
        with nogil:
            status = cry_matmul_swiglu(&self.c, &gu[0, 0], &act[0, 0], &x[0, 0], &w[0, 0], R, F, K)
        self._leave("matmul_swiglu", status)

    def matmul_dx_swiglu(self, float[:, ::1] gu, float[:, ::1] act, const float[:, ::1] dy,
                         const float[:, ::1] w):
        """With the gradient dact = dy (R, N) @ w (N, F) of what ``matmul_swiglu`` gave, that of gu
        (R, 2 F) takes the place of gu; act (R, F) is computed once more."""
        cdef int64_t R = dy.shape[0], N = dy.shape[1], F = w.shape[1]
        cdef cry_status status
        _same("matmul_dx_swiglu", "rows of w", w.shape[0], "columns of dy", N)
        _same("matmul_dx_swiglu", "rows of gu", gu.shape[0], "rows of dy", R)
        _same("matmul_dx_swiglu", "rows of act", act.shape[0], "rows of dy", R)
        _same("matmul_dx_swiglu", "columns of act", act.shape[1], "columns of w", F)
        _same("matmul_dx_swiglu", "columns of gu", gu.shape[1], "twice the columns of act", 2 * F)
        if R > CRY_FEW_ROWS:
            self._reserve(self._product_floats(F, N), 0)
        self._enter()
        with nogil:
            status = cry_matmul_dx_swiglu(&self.c, &gu[0, 0], &act[0, 0], &dy[0, 0], &w[0, 0], R, N,
                                          F)
        self._leave("matmul_dx_swiglu", status)
