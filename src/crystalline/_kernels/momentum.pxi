# Part of team.pyx: optimizers that keep one momentum, and the average of weights.


cdef class Momenta(Sparse):
    """Updates of p and one momentum m (n) in place, from grad, which is read."""

    def lion_spans(self, float[::1] p, float[::1] m, const float[::1] grad,
                   const int64_t[:, ::1] spans, *, float grad_scale, double beta1, double beta2,
                   float step_size, float decay):
        """Lion for the entries begin .. end of each row (begin, end, decays) of spans (S, 3), which
        rise; where ``decays`` is 0 there is no decay.  The formula stands in ``cry_momentum``."""
        cdef cry_momentum c = cry_momentum(grad_scale, beta1, 1.0 - beta1, beta2, 1.0 - beta2,
                                           step_size, decay)
        self._spans("lion_spans", 1, p, m, grad, spans, &c)

    def sgd_spans(self, float[::1] p, float[::1] m, const float[::1] grad,
                  const int64_t[:, ::1] spans, *, float grad_scale, double momentum, bint nesterov,
                  float step_size, float decay):
        """Gradient descent with momentum on ``spans``, as ``lion_spans``."""
        cdef cry_momentum c = cry_momentum(grad_scale, momentum if nesterov else 1.0,
                                           1.0 if nesterov else 0.0, momentum, 1.0, step_size, decay)
        self._spans("sgd_spans", 0, p, m, grad, spans, &c)

    cdef object _spans(self, str op, bint lion, float[::1] p, float[::1] m, const float[::1] grad,
                       const int64_t[:, ::1] spans, const cry_momentum *c):
        cdef cry_status status
        _same(op, "entries of m", m.shape[0], "entries of p", p.shape[0])
        _same(op, "entries of grad", grad.shape[0], "entries of p", p.shape[0])
        _same(op, "columns of spans", spans.shape[1], "begin, end and decays", 3)
        _rising(op, spans, p.shape[0])
        if p.shape[0] == 0 or spans.shape[0] == 0:
            return
        self._enter()
        with nogil:
            if lion:
                status = cry_lion_spans(&self.c, &p[0], &m[0], &grad[0], p.shape[0], &spans[0, 0],
                                        spans.shape[0], c)
            else:
                status = cry_sgd_spans(&self.c, &p[0], &m[0], &grad[0], p.shape[0], &spans[0, 0],
                                       spans.shape[0], c)
        self._leave(op, status)

    def ema(self, float[::1] average, const float[::1] p, float rate):
        """average (n) += rate (p - average)."""
        cdef cry_status status
        _same("ema", "entries of average", average.shape[0], "entries of p", p.shape[0])
        if p.shape[0] == 0:
            return
        self._enter()
        with nogil:
            status = cry_ema(&self.c, &average[0], &p[0], p.shape[0], rate)
        self._leave("ema", status)

    def muon_step(self, float[::1] p, float[::1] m, const float[::1] grad,
                  const int64_t[:, ::1] matrices, const float[::1] step_sizes,
                  const float[:, ::1] coefficients, *, float grad_scale, double momentum,
                  bint nesterov, float decay):
        """Muon for the matrices at the rows (begin, rows, columns) of matrices (M, 3), which do not
        overlap, each with its entry of step_sizes (M); one iteration for every row of coefficients
        (I, 3).  The formula stands in ``cry_muon``."""
        cdef cry_muon c
        cdef cry_status status
        cdef int64_t i, past = 0
        _same("muon_step", "entries of m", m.shape[0], "entries of p", p.shape[0])
        _same("muon_step", "entries of grad", grad.shape[0], "entries of p", p.shape[0])
        _same("muon_step", "columns of matrices", matrices.shape[1], "begin, rows and columns", 3)
        _same("muon_step", "step_sizes", step_sizes.shape[0], "matrices", matrices.shape[0])
        _same("muon_step", "columns of coefficients", coefficients.shape[1], "those of a step", 3)
        if not 1 <= coefficients.shape[0] <= CRY_MUON_ITERATIONS:
            raise ValueError(f"muon_step: coefficients has {coefficients.shape[0]} rows, one for "
                             f"every iteration; give 1 to {CRY_MUON_ITERATIONS}")
        for i in range(matrices.shape[0]):
            begin, rows, columns = matrices[i, 0], matrices[i, 1], matrices[i, 2]
            if rows < 1 or columns < 1 or not past <= begin <= p.shape[0] - rows * columns:
                raise ValueError(f"muon_step: matrix {i} is {rows} x {columns} at {begin}, expected "
                                 f"within {past} .. {p.shape[0]}")
            past = begin + rows * columns
        if matrices.shape[0] == 0:
            return
        c.momentum = cry_momentum(grad_scale, momentum if nesterov else 1.0, 1.0 if nesterov else 0.0,
                                  momentum, 1.0, 0.0, decay)
        c.iterations, c.coefficients = coefficients.shape[0], &coefficients[0, 0]
        self._reserve(0, cry_need_muon(&self.c, &matrices[0, 0], matrices.shape[0]))
        self._enter()
        with nogil:
            status = cry_muon_step(&self.c, &p[0], &m[0], &grad[0], p.shape[0], &matrices[0, 0],
                                   &step_sizes[0], matrices.shape[0], &c)
        self._leave("muon_step", status)
