# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""The calls of sieve.h on arrays.  ``lattice/abacus.py`` gives the memory and checks arguments.

No call lasts longer than one segment: the caller's loop over segments answers Ctrl-C.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "sieve.h" nogil:
    enum:
        CRY_SIEVE_FIRST
    ctypedef struct cry_sieve:
        const uint32_t *primes
        uint32_t *state
        int64_t count
        uint8_t *bits
        int64_t bytes
        uint64_t begin
    void cry_sieve_prepare()
    void cry_sieve_start(cry_sieve *sieve, uint64_t begin)
    void cry_sieve_segment(cry_sieve *sieve)
    uint64_t cry_sieve_mask(int group)
    int64_t cry_sieve_count(const cry_sieve *sieve, uint64_t lo, uint64_t hi, uint64_t mask)
    int64_t cry_sieve_list(const cry_sieve *sieve, uint64_t lo, uint64_t hi, uint64_t mask,
                           uint64_t *out)
    uint64_t cry_sieve_first(const cry_sieve *sieve, uint64_t lo, uint64_t hi, uint64_t mask)
    bint cry_is_prime(uint64_t n)
    int64_t cry_primes_between(uint64_t lo, uint64_t hi, uint64_t mask, uint64_t *out,
                               int64_t room)

FIRST = CRY_SIEVE_FIRST

cry_sieve_prepare()


cdef class Sieve:
    """A segment that moves: ``primes`` from FIRST on to the root of the last number, a word of
    ``state`` for each, and three segments' bytes, of which the middle one is the segment."""

    cdef cry_sieve c
    cdef object _kept  # the arrays must live as long as what points into them

    def __init__(self, const uint32_t[::1] primes, uint32_t[::1] state, uint8_t[::1] bits,
                 uint64_t begin):
        self._kept = primes, state, bits
        self.c.primes, self.c.state, self.c.count = &primes[0], &state[0], primes.shape[0]
        self.c.bytes = bits.shape[0] // 3
        self.c.bits = &bits[self.c.bytes]
        cry_sieve_start(&self.c, begin)

    def advance(self):
        """Sieves the first segment, then each time the next one."""
        with nogil:
            cry_sieve_segment(&self.c)

    def count(self, uint64_t lo, uint64_t hi, uint64_t mask):
        """How many primes of the segment lie in [lo, hi] and in the mask."""
        cdef int64_t count
        with nogil:
            count = cry_sieve_count(&self.c, lo, hi, mask)
        return count

    def list(self, uint64_t lo, uint64_t hi, uint64_t mask, uint64_t[::1] out):
        """Writes those primes to ``out``, which has exactly as many entries."""
        cdef uint64_t *to = &out[0]
        with nogil:
            cry_sieve_list(&self.c, lo, hi, mask, to)

    def first(self, uint64_t lo, uint64_t hi, uint64_t mask):
        """The first of those primes; 0 for none."""
        return cry_sieve_first(&self.c, lo, hi, mask)


def mask(int group):
    """What lets the primes of a group through, those of all groups for -1; 0: it has none."""
    return cry_sieve_mask(group)


def is_prime(uint64_t n):
    """Whether n is prime, proved, for every n."""
    return cry_is_prime(n)


def primes_between(uint64_t lo, uint64_t hi, uint64_t mask, uint64_t[::1] out):
    """Writes the first primes of [lo, hi] in the mask to ``out`` and says how many it wrote."""
    cdef uint64_t *to = &out[0]
    cdef int64_t count, room = out.shape[0]
    with nogil:
        count = cry_primes_between(lo, hi, mask, to, room)
    return count
