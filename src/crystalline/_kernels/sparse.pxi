# Part of team.pyx: the loss over sampled classes, and updates of some rows of a table.


cdef class Sparse(Generates):
    """What touches few rows of a large table."""

    def head_sampled(self, float[::1] losses, const float[:, ::1] h, const float[:, ::1] w,
                     const int32_t[::1] targets, const int64_t[::1] groups,
                     const int32_t[:, ::1] samples, const float[::1] log_expected,
                     float[:, ::1] dh=None, float[:, ::1] dw=None, float scale=1.0,
                     int32_t[::1] order=None, int64_t[::1] index=None):
        """losses (R) in nats of targets among the sampled classes of each group: the rows of samples
        (12, S) rise strictly, log_expected (V) is the log of how often a class is expected in one.

        With dh and dw also the gradients, times ``scale``: dh (R, D) is set, rows ``samples`` and
        ``targets`` of dw (V, D) are added to; order (R), index (V + 1) are work space for it.
        """
        cdef int64_t R = h.shape[0], D = h.shape[1], V = w.shape[0], S = samples.shape[1]
        cdef cry_status status
        cdef float *dh_at = NULL
        cdef float *dw_at = NULL
        cdef int32_t *order_at = NULL
        cdef int64_t *index_at = NULL
        _same("head_sampled", "columns of w", w.shape[1], "columns of h", D)
        _same("head_sampled", "entries of losses", losses.shape[0], "rows of h", R)
        _same("head_sampled", "targets", targets.shape[0], "rows of h", R)
        _same("head_sampled", "rows of samples", samples.shape[0], "the number of groups", 12)
        _same("head_sampled", "groups", groups.shape[0], "the number of starts", 13)
        _same("head_sampled", "entries of log_expected", log_expected.shape[0], "rows of w", V)
        if (dh is None) != (dw is None):
            raise ValueError("head_sampled: dh and dw come together, but only one is given")
        if dh is not None:
            if order is None or index is None:
                raise ValueError("head_sampled: gradients need order (R) and index (V + 1)")
            _same("head_sampled", "rows of dh", dh.shape[0], "rows of h", R)
            _same("head_sampled", "columns of dh", dh.shape[1], "columns of h", D)
            _same("head_sampled", "rows of dw", dw.shape[0], "rows of w", V)
            _same("head_sampled", "columns of dw", dw.shape[1], "columns of w", D)
            _same("head_sampled", "order", order.shape[0], "rows of h", R)
            _same("head_sampled", "index", index.shape[0], "rows of w + 1", V + 1)
            _apart("head_sampled", "order", order, "targets", targets)
            dh_at, dw_at, order_at, index_at = &dh[0, 0], &dw[0, 0], &order[0], &index[0]
        self._reserve(cry_need_head_sampled(&self.c, &groups[0], D, S, dw_at != NULL), 0)
        self._enter()
        with nogil:
            status = cry_head_sampled(&self.c, &losses[0], dh_at, dw_at, &h[0, 0], &w[0, 0],
                                      &targets[0], &groups[0], &samples[0, 0], &log_expected[0], R, D,
                                      V, S, scale, order_at, index_at)
        self._leave("head_sampled", status)

    def adamw_rows(self, float[:, ::1] p, float[:, ::1] m, float[:, ::1] v, const float[:, ::1] grad,
                   const int32_t[::1] rows, *, float grad_scale, double beta1, double beta2,
                   float step_size, float eps, float decay, float root_bias2):
        """As ``adamw`` for the rising ``rows`` (n) of p, m, v (V, D); the others stay untouched."""
        cdef cry_adamw c = cry_adamw(grad_scale, beta1, 1.0 - beta1, beta2, 1.0 - beta2, step_size, eps,
                                     decay, root_bias2)
        cdef cry_status status
        for n in (m.shape[0], v.shape[0], grad.shape[0]):
            _same("adamw_rows", "rows of m, v or grad", n, "rows of p", p.shape[0])
        for n in (m.shape[1], v.shape[1], grad.shape[1]):
            _same("adamw_rows", "columns of m, v or grad", n, "columns of p", p.shape[1])
        if rows.shape[0] == 0:
            return
        self._enter()
        with nogil:
            status = cry_adamw_rows(&self.c, &p[0, 0], &m[0, 0], &v[0, 0], &grad[0, 0], &rows[0],
                                    rows.shape[0], p.shape[0], p.shape[1], &c)
        self._leave("adamw_rows", status)

    def squared_norm_rows(self, const float[:, ::1] x, const int32_t[::1] rows,
                          double[::1] shares=None):
        """The sum of squares of the rising ``rows`` of x (V, D), by a fixed tree; ``shares`` (12) gets
        the parts of the spheres, each of which has a twelfth of the list."""
        cdef double[13] sums
        cdef cry_status status = CRY_OK
        cdef int g
        for g in range(13):
            sums[g] = 0
        if rows.shape[0]:
            self._enter()
            with nogil:
                status = cry_squared_norm_rows(&self.c, sums, &x[0, 0], &rows[0], rows.shape[0],
                                               x.shape[0], x.shape[1])
            self._leave("squared_norm_rows", status)
        if shares is not None:
            _same("squared_norm_rows", "shares", shares.shape[0], "the number of spheres", 12)
            for g in range(12):
                shares[g] = sums[g]
        return sums[12]

    def adamw_rest_rows(self, float[:, ::1] p, float[:, ::1] m, float[:, ::1] v,
                        const int32_t[::1] rows, int32_t[::1] last, const float[:, ::1] past, *,
                        double beta1, double beta2, float eps):
        """What the rising ``rows`` (n) of p, m, v (V, D) have missed: AdamW with a gradient of zero,
        once for each entry of past (steps, 3: decay, step_size, root_bias2) from last[row] on, which
        then becomes their number."""
        cdef cry_adamw c = cry_adamw(1.0, beta1, 1.0 - beta1, beta2, 1.0 - beta2, 0.0, eps, 1.0, 1.0)
        cdef cry_status status
        for n in (m.shape[0], v.shape[0], last.shape[0]):
            _same("adamw_rest_rows", "rows of m, v or last", n, "rows of p", p.shape[0])
        for n in (m.shape[1], v.shape[1]):
            _same("adamw_rest_rows", "columns of m or v", n, "columns of p", p.shape[1])
        _same("adamw_rest_rows", "columns of past", past.shape[1], "the numbers of a step", 3)
        _apart("adamw_rest_rows", "last", last, "rows", rows)
        if rows.shape[0] == 0:
            return
        self._enter()
        with nogil:
            status = cry_adamw_rest_rows(&self.c, &p[0, 0], &m[0, 0], &v[0, 0], &last[0],
                                         &past[0, 0] if past.shape[0] else NULL, &rows[0],
                                         rows.shape[0], p.shape[0], p.shape[1], past.shape[0], &c)
        self._leave("adamw_rest_rows", status)
