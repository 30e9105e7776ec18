# What the package asks of the operating system; not for others.
from libc.stdint cimport int32_t, int64_t

cdef extern from "system.h" nogil:
    int cry_quota_cpus(const char *root)
    int cry_pin(int cpu)
    int cry_interleave(void *memory, int64_t bytes, const int32_t *nodes, int count)
