# Part of team.pyx: attention.


cdef class Attends(Rows):
    """Attention, causal, with grouped queries."""

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

    def attention_windows(self, float[:, ::1] out, float[::1] lse, const float[:, ::1] qkv,
                          const int64_t[::1] starts, int64_t H, int64_t K,
                          const int64_t[::1] lengths=None):
        """``attention`` over W windows: window w is rows starts (W + 1)[w] .. starts[w + 1], and as a
        sequence of its own; from its row lengths (W)[w] on it is padding.  Its lse begins at
        starts[w] H."""
        cdef cry_status status
        cdef cry_attention shape = _shape("attention_windows", qkv, 1, H, K)
        cdef int64_t R = qkv.shape[0], W = starts.shape[0] - 1
        _windows("attention_windows", starts, lengths, R)
        _same("attention_windows", "rows of out", out.shape[0], "rows of qkv", R)
        _same("attention_windows", "columns of out", out.shape[1], "heads x width",
              H * shape.head_dim)
        _same("attention_windows", "entries of lse", lse.shape[0], "rows x heads", R * H)
        cdef const int64_t *ends = _lengths("attention_windows", lengths, W)
        self._reserve(cry_need_windows(W), cry_need_attention(&shape, 0))
        self._enter()
        with nogil:
            status = cry_attention_windows(&self.c, &out[0, 0], &lse[0], &qkv[0, 0], R, &shape,
                                           &starts[0], ends, W)
        self._leave("attention_windows", status)

    def attention_windows_bwd(self, float[:, ::1] dqkv, const float[:, ::1] dout,
                              const float[:, ::1] out, const float[:, ::1] qkv,
                              const float[::1] lse, const int64_t[::1] starts, int64_t H, int64_t K,
                              const int64_t[::1] lengths=None):
        """dqkv, shaped like qkv, from dout, shaped like out, and what ``attention_windows`` was
        given."""
        cdef cry_status status
        cdef str op = "attention_windows_bwd"
        cdef cry_attention shape = _shape(op, qkv, 1, H, K)
        cdef int64_t R = qkv.shape[0], W = starts.shape[0] - 1
        _windows(op, starts, lengths, R)
        _same(op, "rows of dqkv", dqkv.shape[0], "rows of qkv", R)
        _same(op, "columns of dqkv", dqkv.shape[1], "columns of qkv", qkv.shape[1])
        for rows, columns in ((dout.shape[0], dout.shape[1]), (out.shape[0], out.shape[1])):
            _same(op, "rows of out or dout", rows, "rows of qkv", R)
            _same(op, "columns of out or dout", columns, "heads x width", H * shape.head_dim)
        _same(op, "entries of lse", lse.shape[0], "rows x heads", R * H)
        cdef const int64_t *ends = _lengths(op, lengths, W)
        self._reserve(cry_need_windows(W), cry_need_attention(&shape, 1))
        self._enter()
        with nogil:
            status = cry_attention_windows_bwd(&self.c, &dqkv[0, 0], &dout[0, 0], &out[0, 0],
                                               &qkv[0, 0], &lse[0], R, &shape, &starts[0], ends, W)
        self._leave(op, status)

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
