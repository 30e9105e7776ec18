# Part of team.pyx: what works along rows.


cdef class Rows(Softmaxes):
    """Norms, rotary positions, SwiGLU, embedding rows."""

    def exp2(self, float[::1] y, const float[::1] x):
        """y = 2 to the power x for x up to 127, within 2 ulp; 0 below -126.5."""
        _same("exp2", "y", y.shape[0], "x", x.shape[0])
        if x.shape[0]:
            self.c.kernels.exp2(&y[0], &x[0], x.shape[0])

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

    def rope_at(self, float[:, ::1] x, const float[:, ::1] cosine, const float[:, ::1] sine,
                int64_t heads, const int32_t[::1] positions, bint inverse=False):
        """``rope`` with row r at positions (R)[r]."""
        cdef cry_status status
        _same("rope_at", "rows of sine", sine.shape[0], "rows of cosine", cosine.shape[0])
        _same("rope_at", "columns of sine", sine.shape[1], "columns of cosine", cosine.shape[1])
        _same("rope_at", "positions", positions.shape[0], "rows of x", x.shape[0])
        self._enter()
        with nogil:
            status = cry_rope_at(&self.c, &x[0, 0], &cosine[0, 0], &sine[0, 0], x.shape[0],
                                 x.shape[1], heads, 2 * cosine.shape[1], &positions[0],
                                 cosine.shape[0], inverse)
        self._leave("rope_at", status)

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

    def swiglu_bwd_act(self, float[:, ::1] dgu, float[:, ::1] act, const float[:, ::1] gu):
        """dgu (R, 2 F), which may be gu itself, from dact (R, F), which comes in act and gives way to
        what ``swiglu`` makes of gu."""
        cdef cry_status status
        _same("swiglu_bwd_act", "columns of gu", gu.shape[1], "twice act's", 2 * act.shape[1])
        _same("swiglu_bwd_act", "columns of dgu", dgu.shape[1], "columns of gu", gu.shape[1])
        _same("swiglu_bwd_act", "rows of gu", gu.shape[0], "rows of act", act.shape[0])
        _same("swiglu_bwd_act", "rows of dgu", dgu.shape[0], "rows of act", act.shape[0])
        self._enter()
        with nogil:
            status = cry_swiglu_bwd_act(&self.c, &dgu[0, 0], &act[0, 0], &gu[0, 0], act.shape[0],
                                        act.shape[1])
        self._leave("swiglu_bwd_act", status)

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
        _apart("embedding_bwd", "order", order, "ids", ids)
        self._enter()
        with nogil:
            status = cry_embedding_bwd(&self.c, &dw[0, 0], &dx[0, 0], &ids[0], &groups[0],
                                       ids.shape[0], dw.shape[1], dw.shape[0], accumulate,
                                       &order[0], &index[0])
        self._leave("embedding_bwd", status)
