# Part of team.pyx: inference, with weights in any precision.
from libc.stdlib cimport calloc, free

PRECISIONS = ("fp32", "bf16", "int8")


cdef cry_format _format(str precision) except *:
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    return (CRY_INT8 if precision == "int8" else
            CRY_BF16 if precision == "bf16" else CRY_FP32)


cdef class Weight:
    """A weight (N, K) packed by ``Team.weight``, read-only: ``precision`` is one of PRECISIONS.

    int8 is symmetric, with a float32 scale for each row: its largest magnitude / 127.
    """

    cdef cry_weight c
    cdef object _panels, _scales
    cdef readonly int64_t rows, columns
    cdef readonly str precision, isa

    @property
    def nbytes(self):
        """Bytes of panels and scales."""
        return self._panels.nbytes + self._scales.nbytes


cdef class Stack:
    """All layers of a decoder, as ``Team.decode`` wants them.

    ``layers`` holds for each layer (norm, qkv, out, norm2, gate, up, down): gains (D), float32, and
    Weights (E, D), (D, D), (F, D), (F, D), (D, F); ``norm`` (D) comes last, ``embedding`` (V, D)
    first; ``cosine``, ``sine`` (positions, head_dim / 2) are the tables of the rotary positions.
    """

    cdef cry_decoder c
    cdef cry_layer *layer
    cdef object _held
    cdef readonly str isa

    def __cinit__(self, layers, const float[::1] norm, Weight embedding, const float[:, ::1] cosine,
                  const float[:, ::1] sine, int64_t H, int64_t K, float eps):
        cdef int64_t D = embedding.columns, i = 0
        # In tuples, so that nobody takes out later what the table points to.
        self._held = (tuple(map(tuple, layers)), norm, embedding, cosine, sine)
        layers = self._held[0]
        if H < 1 or K < 1 or H % K or D % (2 * H) or not layers:
            raise ValueError(f"stack: {len(layers)} layers of {H} heads and {K} key/value heads do "
                             f"not fit a width of {D}: heads must divide half of it, and be a "
                             "multiple of key/value heads")
        self.layer = <cry_layer *> calloc(len(layers), sizeof(cry_layer))
        if self.layer == NULL:
            raise MemoryError("no memory for the layers")
        self.isa = embedding.isa
        _same("stack", "entries of norm", norm.shape[0], "columns of embedding", D)
        _same("stack", "columns of cosine", cosine.shape[1], "half a head's width", D // H // 2)
        _same("stack", "columns of sine", sine.shape[1], "columns of cosine", cosine.shape[1])
        _same("stack", "rows of sine", sine.shape[0], "rows of cosine", cosine.shape[0])
        self.c.layers, self.c.D, self.c.V = len(layers), D, embedding.rows
        self.c.F = (<Weight?> layers[0][4]).rows
        self.c.positions, self.c.eps = cosine.shape[0], eps
        self.c.shape.T, self.c.shape.H, self.c.shape.K = 1, H, K
        self.c.shape.head_dim = D // H
        self.c.shape.scale = <float> ((<double> (D // H)) ** -0.5)
        self.c.cosine = &cosine[0, 0]
        self.c.sine = &sine[0, 0]
        self.c.norm = &norm[0]
        self.c.embedding = embedding.c
        self.c.layer = self.layer
        for one in layers:
            norm1, qkv, out, norm2, gate, up, down = one
            self._fill(&self.layer[i], norm1, qkv, out, norm2, gate, up, down)
            i += 1

    def __dealloc__(self):
        free(self.layer)

    cdef cry_weight _weight(self, str name, Weight w, int64_t rows, int64_t columns) except *:
        _same("stack", f"rows of {name}", w.rows, "the width due", rows)
        _same("stack", f"columns of {name}", w.columns, "the width due", columns)
        if w.isa != self.isa:
            raise ValueError(f"stack: {name} is packed for {w.isa}, but embedding for {self.isa}")
        return w.c

    cdef object _fill(self, cry_layer *to, const float[::1] norm, Weight qkv, Weight out,
                      const float[::1] norm2, Weight gate, Weight up, Weight down):
        cdef int64_t D = self.c.D, F = self.c.F
        cdef int64_t E = (self.c.shape.H + 2 * self.c.shape.K) * self.c.shape.head_dim
        _same("stack", "entries of a norm", norm.shape[0], "columns of embedding", D)
        _same("stack", "entries of a norm", norm2.shape[0], "columns of embedding", D)
        to.norm = &norm[0]
        to.norm2 = &norm2[0]
        to.qkv = self._weight("qkv", qkv, E, D)
        to.out = self._weight("out", out, D, D)
        to.gate = self._weight("gate", gate, F, D)
        to.up = self._weight("up", up, F, D)
        to.down = self._weight("down", down, D, F)


cdef class Generates(Narrow):
    """What a pool can do with packed weights of any precision."""

    def weight_bytes(self, int64_t N, int64_t K, str precision="fp32"):
        """Bytes of the panels of a Weight (N, K)."""
        return cry_weight_bytes(&self.c, _format(precision), N, K)

    def weight(self, const float[:, ::1] w, str precision="fp32", room=None):
        """w (N, K) packed as a Weight, rounded to nearest even; into ``room``, bytes as many as
        ``weight_bytes`` says, or memory of its own."""
        cdef int64_t N = w.shape[0], K = w.shape[1]
        cdef cry_format format = _format(precision)
        cdef Weight made = Weight.__new__(Weight)
        cdef cry_status status
        cdef unsigned char[::1] panels
        cdef float[::1] scales
        cdef float *scales_at = NULL
        if N == 0 or K == 0:
            raise ValueError(f"weight: w is ({N}, {K}), but must have rows and columns")
        made.c.format = format
        made.rows, made.columns, made.precision, made.isa = N, K, precision, self.isa
        size = cry_weight_bytes(&self.c, format, N, K)
        made._panels = arena((size + 3) // 4).view(np.uint8)[:size] if room is None else room
        made._scales = np.zeros(cry_weight_scales(&self.c, made.c.format, N), np.float32)
        panels, scales = made._panels, made._scales
        _same("weight", "bytes of room", panels.shape[0], "weight_bytes(N, K)", size)
        if scales.shape[0]:
            scales_at = &scales[0]
        made.c.panels = &panels[0]
        made.c.scales = scales_at
        self._reserve(0, cry_need_weight(&self.c, K))
        self._enter()
        with nogil:
            status = cry_narrow_weight(&self.c, &panels[0], scales_at, &w[0, 0], made.c.format, N, K)
        self._leave("weight", status)
        return made

    cdef object _packed_here(self, str op, str isa):
        if isa != self.isa:
            raise ValueError(f"{op}: the weight is packed for {isa}, but the team runs {self.isa}")

    def matmul_weight(self, float[:, ::1] y, const float[:, ::1] x, Weight w,
                      const float[:, ::1] init=None):
        """y (R, N) = init (R, N) + x (R, K) @ w (N, K).T; init may be None, and is not y."""
        cdef int64_t R = x.shape[0]
        cdef cry_status status
        cdef const float *start = NULL
        self._packed_here("matmul_weight", w.isa)
        _same("matmul_weight", "columns of x", x.shape[1], "columns of w", w.columns)
        _same("matmul_weight", "rows of y", y.shape[0], "rows of x", R)
        _same("matmul_weight", "columns of y", y.shape[1], "rows of w", w.rows)
        if init is not None:
            _same("matmul_weight", "rows of init", init.shape[0], "rows of y", R)
            _same("matmul_weight", "columns of init", init.shape[1], "columns of y", w.rows)
            start = &init[0, 0]
        if start == &y[0, 0]:
            raise ValueError("matmul_weight: init is y; give y memory of its own")
        self._reserve(0, cry_need_weight(&self.c, w.columns))
        self._enter()
        with nogil:
            status = cry_matmul_weight(&self.c, &y[0, 0], &x[0, 0], &w.c, start, R, w.rows,
                                       w.columns)
        self._leave("matmul_weight", status)

    def embedding_weight(self, float[:, ::1] x, Weight w, const int32_t[::1] ids):
        """x (R, K) = w (N, K)[ids], widened."""
        cdef cry_status status
        self._packed_here("embedding_weight", w.isa)
        _same("embedding_weight", "columns of x", x.shape[1], "columns of w", w.columns)
        _same("embedding_weight", "rows of x", x.shape[0], "ids", ids.shape[0])
        self._enter()
        with nogil:
            status = cry_embedding_weight(&self.c, &x[0, 0], &w.c, &ids[0], ids.shape[0], w.rows,
                                          w.columns)
        self._leave("embedding_weight", status)

    def decode(self, float[:, ::1] h, Stack stack, const int32_t[::1] ids, keys, values,
               const int64_t[::1] rows, const int64_t[::1] positions):
        """h (R, D): the normed last hidden states of the new tokens ids (R) of B sequences.

        Sequence b has the next rows (B)[b] of them, at position positions (B)[b]; its cache, which
        they join, is keys[b] (layers, K, Dh, C) and values[b] (layers, K, C, Dh up to 32).
        """
        cdef int64_t B = rows.shape[0], b, o, R = 0
        cdef cry_sequence *sequences
        cdef cry_status status
        self._packed_here("decode", stack.isa)
        _same("decode", "positions", positions.shape[0], "rows", B)
        _same("decode", "keys", len(keys), "rows", B)
        _same("decode", "values", len(values), "rows", B)
        for b in range(B):
            if rows[b] < 1 or rows[b] > ids.shape[0]:
                raise ValueError(f"decode: sequence {b} has {rows[b]} rows; give 1 or more")
            R += rows[b]
        _same("decode", "the sum of rows", R, "ids", ids.shape[0])
        _same("decode", "rows of h", h.shape[0], "ids", R)
        _same("decode", "columns of h", h.shape[1], "width of the model", stack.c.D)
        self._reserve(cry_need_decode(&stack.c, R), cry_need_decode_scratch(&self.c, &stack.c, R))
        # Held until the end: the lists may change meanwhile, or make their arrays when asked.
        caches = tuple([(keys[b], values[b]) for b in range(B)])
        sequences = <cry_sequence *> calloc(B + 1, sizeof(cry_sequence))
        if sequences == NULL:
            raise MemoryError(f"decode: no memory for {B} sequences")
        try:
            for b in range(B):
                sequences[b].rows, sequences[b].position = rows[b], positions[b]
                k, v = caches[b]
                _cache(sequences + b, &stack.c, k, v)
                for o in range(b):
                    if sequences[o].keys == sequences[b].keys or \
                            sequences[o].values == sequences[b].values:
                        raise ValueError(f"decode: sequences {o} and {b} share a cache; give each "
                                         "its own")
            self._enter()
            with nogil:
                status = cry_decode(&self.c, &h[0, 0], &stack.c, &ids[0], sequences, B)
            self._leave("decode", status)
        finally:
            free(sequences)


cdef object _cache(cry_sequence *to, const cry_decoder *d, float[:, :, :, ::1] keys,
                   float[:, :, :, ::1] values):
    """Checks and notes one sequence's cache."""
    cdef int64_t C = keys.shape[3], dh = d.shape.head_dim
    for what, have, due in (
        ("layers of keys", keys.shape[0], d.layers), ("heads of keys", keys.shape[1], d.shape.K),
        ("width of keys", keys.shape[2], dh), ("layers of values", values.shape[0], d.layers),
        ("heads of values", values.shape[1], d.shape.K), ("positions of values", values.shape[2], C),
        ("width of values", values.shape[3], (dh + 31) // 32 * 32),
    ):
        _same("decode", what, have, "what the model has", due)
    if to.position < 0 or to.rows > C or to.position > min(C, d.positions) - to.rows:
        raise ValueError(f"decode: {to.rows} rows from position {to.position} are outside the "
                         f"cache's {C} or the model's {d.positions} positions")
    to.keys = &keys[0, 0, 0, 0]
    to.values = &values[0, 0, 0, 0]
    to.capacity = C
