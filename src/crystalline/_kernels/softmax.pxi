# Part of team.pyx: the softmax family and elementary functions.


cdef object _same_2d(str op, str left, const float[:, ::1] a, str right, const float[:, ::1] b):
    _same(op, "rows of " + left, a.shape[0], "rows of " + right, b.shape[0])
    _same(op, "columns of " + left, a.shape[1], "columns of " + right, b.shape[1])


cdef class Softmaxes(Products):
    """Softmax, its logarithm, its sum, cross-entropy of logits; exp and log."""

    def exp(self, float[::1] y, const float[::1] x):
        """y = exp(x), within 2 ulp; y may be x."""
        cdef cry_status status
        _same("exp", "y", y.shape[0], "x", x.shape[0])
        if x.shape[0] == 0:
            return
        self._enter()
        with nogil:
            status = cry_exp(&self.c, &y[0], &x[0], x.shape[0])
        self._leave("exp", status)

    def log(self, float[::1] y, const float[::1] x):
        """y = log(x), within 2 ulp; y may be x."""
        cdef cry_status status
        _same("log", "y", y.shape[0], "x", x.shape[0])
        if x.shape[0] == 0:
            return
        self._enter()
        with nogil:
            status = cry_log(&self.c, &y[0], &x[0], x.shape[0])
        self._leave("log", status)

    def softmax(self, float[:, ::1] y, const float[:, ::1] x):
        """y (R, V) = exp(x - max) / sum, row by row; y may be x."""
        cdef cry_status status
        _same_2d("softmax", "y", y, "x", x)
        self._reserve(0, cry_need_softmax(x.shape[0], x.shape[1]))
        self._enter()
        with nogil:
            status = cry_softmax(&self.c, &y[0, 0], &x[0, 0], x.shape[0], x.shape[1])
        self._leave("softmax", status)

    def softmax_bwd(self, float[:, ::1] dx, const float[:, ::1] dy, const float[:, ::1] y):
        """dx (R, V), which may be dy or y, from dy and the forward's y."""
        cdef cry_status status
        _same_2d("softmax_bwd", "dx", dx, "dy", dy)
        _same_2d("softmax_bwd", "y", y, "dy", dy)
        self._enter()
        with nogil:
            status = cry_softmax_bwd(&self.c, &dx[0, 0], &dy[0, 0], &y[0, 0], y.shape[0],
                                     y.shape[1])
        self._leave("softmax_bwd", status)

    def log_softmax(self, float[:, ::1] y, const float[:, ::1] x):
        """y (R, V) = x - logsumexp(x), row by row; y may be x."""
        cdef cry_status status
        _same_2d("log_softmax", "y", y, "x", x)
        self._enter()
        with nogil:
            status = cry_log_softmax(&self.c, &y[0, 0], &x[0, 0], x.shape[0], x.shape[1])
        self._leave("log_softmax", status)

    def log_softmax_bwd(self, float[:, ::1] dx, const float[:, ::1] dy, const float[:, ::1] y):
        """dx (R, V), which may be dy or y, from dy and the forward's y."""
        cdef cry_status status
        _same_2d("log_softmax_bwd", "dx", dx, "dy", dy)
        _same_2d("log_softmax_bwd", "y", y, "dy", dy)
        self._enter()
        with nogil:
            status = cry_log_softmax_bwd(&self.c, &dx[0, 0], &dy[0, 0], &y[0, 0], y.shape[0],
                                         y.shape[1])
        self._leave("log_softmax_bwd", status)

    def logsumexp(self, float[::1] y, const float[:, ::1] x):
        """y (R) = log of the sum of exp over each row of x (R, V)."""
        cdef cry_status status
        _same("logsumexp", "entries of y", y.shape[0], "rows of x", x.shape[0])
        self._enter()
        with nogil:
            status = cry_logsumexp(&self.c, &y[0], &x[0, 0], x.shape[0], x.shape[1])
        self._leave("logsumexp", status)

    def cross_entropy(self, float[::1] losses, const float[:, ::1] logits,
                      const int32_t[::1] targets):
        """losses (R) in nats of targets (R) under softmax(logits (R, V)), 0 where target is -1."""
        cdef cry_status status
        _same("cross_entropy", "entries of losses", losses.shape[0], "rows of logits",
              logits.shape[0])
        _same("cross_entropy", "targets", targets.shape[0], "rows of logits", logits.shape[0])
        self._enter()
        with nogil:
            status = cry_cross_entropy(&self.c, &losses[0], &logits[0, 0], &targets[0],
                                       logits.shape[0], logits.shape[1])
        self._leave("cross_entropy", status)

    def cross_entropy_bwd(self, float[:, ::1] dlogits, const float[::1] dlosses,
                          const float[:, ::1] logits, const int32_t[::1] targets):
        """dlogits (R, V), which may be logits, = (softmax(logits) - [target]) dlosses (R)."""
        cdef cry_status status
        _same_2d("cross_entropy_bwd", "dlogits", dlogits, "logits", logits)
        _same("cross_entropy_bwd", "entries of dlosses", dlosses.shape[0], "rows of logits",
              logits.shape[0])
        _same("cross_entropy_bwd", "targets", targets.shape[0], "rows of logits", logits.shape[0])
        self._enter()
        with nogil:
            status = cry_cross_entropy_bwd(&self.c, &dlogits[0, 0], &dlosses[0], &logits[0, 0],
                                           &targets[0], logits.shape[0], logits.shape[1])
        self._leave("cross_entropy_bwd", status)
