# cython: language_level=3, boundscheck=False, wraparound=False
"""nearest.similarities(out, queries, keys, threads=1): the cosine of the angle between each query
and each key, computed by a team of threads, to the same bits for any number of them."""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from crystalline.kernels cimport (CRY_OK, cry_kernels_for, cry_matmul, cry_need_matmul,
                                  cry_pool_free, cry_pool_new, cry_rmsnorm, cry_status, cry_team)


cdef cry_status _similarities(cry_team *team, float *out, float *unit, const float *queries,
                              const float *keys, int64_t Q, int64_t N, int64_t D) noexcept nogil:
    """unit has room for D gains, the longest of Q and N roots, and all normed rows."""
    cdef float *roots = unit + D
    cdef float *q = roots + max(Q, N)
    cdef float *k = q + Q * D
    cdef cry_status status
    cdef int64_t j
    for j in range(D):
        # A row whose root mean square is 1 has the length sqrt(D).
        unit[j] = <float> ((<double> D) ** -0.5)
    status = cry_rmsnorm(team, q, roots, queries, unit, Q, D, 1e-12)
    if status == CRY_OK:
        status = cry_rmsnorm(team, k, roots, keys, unit, N, D, 1e-12)
    if status == CRY_OK:
        status = cry_matmul(team, out, q, k, NULL, Q, N, D)
    return status


def similarities(float[:, ::1] out, const float[:, ::1] queries, const float[:, ::1] keys,
                 int threads=1):
    """out (Q, N) = cosine of queries (Q, D) and keys (N, D), all float32."""
    cdef int64_t Q = queries.shape[0], N = keys.shape[0], D = queries.shape[1]
    cdef cry_team team = cry_team(cry_kernels_for(NULL), threads, NULL, NULL, NULL, 0, 0)
    cdef cry_status status = CRY_OK
    cdef float *unit = NULL
    if keys.shape[1] != D or out.shape[0] != Q or out.shape[1] != N or min(Q, N, D) < 1:
        raise ValueError(f"similarities: out is ({out.shape[0]}, {out.shape[1]}), but must be "
                         f"({Q}, {N}), and keys are ({N}, {keys.shape[1]}), but must be ({N}, {D}), "
                         "none of them 0")
    team.shared_len = cry_need_matmul(&team, N, D)
    try:
        team.pool = cry_pool_new(threads, NULL)
        team.shared = <float *> malloc(<size_t> team.shared_len * sizeof(float))
        unit = <float *> malloc(<size_t> (D + max(Q, N) + (Q + N) * D) * sizeof(float))
        if team.pool == NULL or team.shared == NULL or unit == NULL:
            raise MemoryError
        with nogil:
            status = _similarities(&team, &out[0, 0], unit, &queries[0, 0], &keys[0, 0], Q, N, D)
        if status != CRY_OK:
            raise ValueError(f"similarities: status {status} of crystalline/kernels.h")
    finally:
        cry_pool_free(team.pool)
        free(team.shared)
        free(unit)
