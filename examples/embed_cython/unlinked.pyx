# cython: language_level=3, boundscheck=False, wraparound=False
"""unlinked.exp(y, x): by the table of kernels that the installed crystalline hands out in a
capsule.  Nothing of crystalline is linked into this module."""

from cpython.pycapsule cimport PyCapsule_Import

from crystalline.kernels cimport cry_kernels, cry_kernels_fit

cdef const cry_kernels *table = <const cry_kernels *> PyCapsule_Import("crystalline.cry_kernels", 0)
if not cry_kernels_fit(table):
    raise ImportError("unlinked: the installed crystalline is older than the one it was built "
                      "with; upgrade crystalline")


def isa():
    """The instruction set of the table."""
    return table.isa.decode()


def exp(float[::1] y, const float[::1] x):
    """y (n) = exp(x (n)), within 2 ulp."""
    if y.shape[0] != x.shape[0]:
        raise ValueError(f"exp: y has {y.shape[0]} entries, but x has {x.shape[0]}")
    if x.shape[0]:
        with nogil:
            table.exp(&y[0], &x[0], x.shape[0])
