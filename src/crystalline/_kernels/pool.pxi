# Part of team.pyx: the threads, the memory they work in, and who takes which tasks.

PARTS = 1728


def pin_thread(int cpu):
    """Keeps the calling thread on one CPU; False when the system refuses."""
    return cry_pin(cpu) != 0


def interleave(float[::1] x, const int32_t[::1] nodes):
    """Asks for the pages of x, not yet touched, in turn from the NUMA ``nodes``; False when the
    system refuses."""
    if x.shape[0] == 0 or nodes.shape[0] == 0:
        return False
    return cry_interleave(&x[0], 4 * x.shape[0], &nodes[0], <int> nodes.shape[0]) != 0


cdef class Pool:
    """Threads, kernels and work space.  It serves one caller at a time.

    ``threads`` is the number of OS threads, the caller's among them; ``isa`` one of ISAS or None for
    the best; ``cpus`` names for each thread the CPU it stays on (the caller, which is thread 0, is
    left where it is), None leaves the choice to the system.
    """

    cdef cry_team c
    cdef object _shared, _scratch
    cdef bint busy
    cdef int leaves
    cdef readonly int threads
    cdef readonly str isa
    cdef readonly object cpus

    def __cinit__(self, int threads, isa=None, cpus=None):
        if threads < 1 or threads > 4096:
            raise UsageError(f"threads is {threads}, but must be 1 to 4096")
        cdef bytes name
        if isa is None:
            self.c.kernels, self.c.bf16 = cry_kernels_for(NULL), cry_bf16_for(NULL)
        else:
            name = isa.encode()
            self.c.kernels, self.c.bf16 = cry_kernels_for(name), cry_bf16_for(name)
        if self.c.kernels == NULL:
            raise UsageError(f"instruction set {isa!r} cannot run on this CPU; "
                             f"choose one of {', '.join(available_isas())}")
        cdef int[4096] places
        self.cpus = None if cpus is None else tuple(cpus)
        if cpus is not None:
            _same("team", "cpus", len(self.cpus), "threads", threads)
            for t in range(threads):
                places[t] = self.cpus[t]
        self.c.threads = self.threads = threads
        self.c.pool = cry_pool_new(threads, places if cpus is not None else NULL)
        if self.c.pool == NULL:
            raise MemoryError("no memory for a team's threads")
        self.leaves = 12
        self.isa = self.c.kernels.isa.decode()

    def __dealloc__(self):
        cry_pool_free(self.c.pool)

    @property
    def has_bf16(self):
        """Whether the methods on bf16 can run: the CPU has AVX512_BF16, and it was not ruled out."""
        return self.c.bf16 != NULL

    @property
    def work_bytes(self):
        """Bytes of work space held now, shared and per thread together."""
        return 4 * (self.c.shared_len + self.c.scratch_len * self.c.threads)

    cdef object _enter(self):
        """Before the interpreter lock is released: a second caller is an error, not a wild write."""
        if self.busy:
            raise RuntimeError("this team is at work for another thread; give each a team of its own")
        self.busy = True

    cdef object _leave(self, str op, cry_status status):
        self.busy = False
        _check(op, status)

    cdef object _reserve(self, int64_t shared, int64_t scratch):
        cdef float[::1] view
        # The arena is made in Python, where other threads and signals' handlers may run between.
        self._enter()
        try:
            if shared > self.c.shared_len:
                self.c.shared, self.c.shared_len = NULL, 0
                self._shared = None
                self._shared = arena(shared)
                view = self._shared
                self.c.shared, self.c.shared_len = &view[0], shared
            if scratch > self.c.scratch_len:
                self.c.scratch, self.c.scratch_len = NULL, 0
                self._scratch = None
                self._scratch = arena(scratch * self.c.threads)
                view = self._scratch
                self.c.scratch, self.c.scratch_len = &view[0], scratch
        finally:
            self.busy = False

    def arrange(self, const int32_t[::1] begin, const int32_t[::1] owner, const int32_t[:, ::1] order,
                bint steal):
        """Divides the tasks of regions among leaves: leaf l has parts begin[l] .. begin[l + 1] of
        PARTS (sphere g those from 144 g) and belongs to thread owner[l]; order (threads, leaves)
        is how each thread looks at the leaves, its own first.  No result depends on it."""
        cdef cry_arrangement a
        a.leaves, a.steal = <int> owner.shape[0], steal
        _same("arrange", "entries of begin", begin.shape[0], "leaves + 1", a.leaves + 1)
        _same("arrange", "rows of order", order.shape[0], "threads", self.threads)
        _same("arrange", "columns of order", order.shape[1], "leaves", a.leaves)
        if a.leaves < 12:
            raise ValueError(f"arrange: there are {a.leaves} leaves, but every sphere has one or more")
        a.begin, a.owner, a.order = &begin[0], &owner[0], &order[0, 0]
        self._enter()
        cdef cry_status status = cry_pool_arrange(self.c.pool, &a)
        self.busy = False
        if status == CRY_NO_SCRATCH:
            raise MemoryError("no memory for a team's leaves")
        if status != CRY_OK:
            raise ValueError("arrange: begin must rise from 0 to 1728 through every multiple of 144, "
                             "owners be threads, and each order name every leaf once, its own first")
        self.leaves = a.leaves

    def statistics(self):
        """Counters since the team was made, in a dict: regions; inside, the nanoseconds between
        their beginnings and ends; spheres (12, 3) and threads (N, 3) with tasks, stolen tasks and
        busy nanoseconds; leaves, the busy nanoseconds of each since ``arrange``."""
        cdef cry_statistics s
        spheres = np.zeros((12, 3), np.int64)
        # Room for any arrangement: another thread may come and arrange while arrays are made.
        threads, leaves = np.zeros((self.threads, 3), np.int64), np.zeros(PARTS, np.int64)
        cdef int64_t[:, ::1] of_spheres = spheres, of_threads = threads
        cdef int64_t[::1] of_leaves = leaves
        cdef int g
        s.threads, s.leaf_busy = <cry_counts *> &of_threads[0, 0], &of_leaves[0]
        cry_pool_statistics(self.c.pool, &s)
        count = self.leaves
        for g in range(12):
            of_spheres[g, 0], of_spheres[g, 1] = s.spheres[g].tasks, s.spheres[g].stolen
            of_spheres[g, 2] = s.spheres[g].busy
        return {"regions": s.regions, "inside": s.inside, "spheres": spheres, "threads": threads,
                "leaves": leaves[:count]}
