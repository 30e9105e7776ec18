# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""The calls of region.h on buffers: ``header`` of 128 bytes, ``payload`` from a multiple of eight.

Statuses go back as numbers; ``spheres/region.py`` words them.  Times are in seconds.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t

cdef extern from "system.h" nogil:
    int64_t cry_nanoseconds()
    uint64_t cry_process_start(int64_t pid)

cdef extern from "crystalline/region.h" nogil:
    ctypedef struct cry_region:
        uint64_t size, reads, writes, copies, retries
    ctypedef enum cry_region_status:
        CRY_REGION_OK
        CRY_REGION_CHANGED
        CRY_REGION_TIMEOUT
        CRY_REGION_TORN
        CRY_REGION_NOT_WRITER
        CRY_REGION_NO_IDENTITY
        CRY_REGION_NO_MAGIC
        CRY_REGION_BAD_FORMAT
        CRY_REGION_TRUNCATED
    void cry_region_format(cry_region *region, uint64_t size)
    cry_region_status cry_region_check(const cry_region *region, uint64_t room)
    cry_region_status cry_region_write_begin(cry_region *region, int64_t until)
    cry_region_status cry_region_write_end(cry_region *region)
    void cry_region_store(void *payload, uint64_t at, const void *data, uint64_t bytes)
    cry_region_status cry_region_read_begin(const cry_region *region, int64_t until,
                                            uint64_t *version)
    void cry_region_load(void *out, const void *payload, uint64_t at, uint64_t bytes)
    cry_region_status cry_region_read_end(cry_region *region, uint64_t version)
    uint64_t cry_region_version(const cry_region *region)
    int64_t cry_region_writer(const cry_region *region)
    void cry_region_copied(cry_region *region)

OK = CRY_REGION_OK
TIMEOUT = CRY_REGION_TIMEOUT
TORN = CRY_REGION_TORN
NOT_WRITER = CRY_REGION_NOT_WRITER
NO_IDENTITY = CRY_REGION_NO_IDENTITY
NO_MAGIC = CRY_REGION_NO_MAGIC
BAD_FORMAT = CRY_REGION_BAD_FORMAT
TRUNCATED = CRY_REGION_TRUNCATED

cdef int64_t SLICE = 100000000  # Ctrl-C is answered after each


cdef inline cry_region *_at(unsigned char[::1] header):
    return <cry_region *> &header[0]


cdef int64_t _until(double timeout):
    return cry_nanoseconds() + (<int64_t> (min(timeout, 1e9) * 1e9) if timeout > 0 else 0)


def process_start(int64_t pid):
    """When a process was started, in ticks since boot; 0 if there is none or it is dead."""
    return cry_process_start(pid)


def format(unsigned char[::1] header, uint64_t size):
    """Makes a region in zeroed memory that nobody else knows."""
    cry_region_format(_at(header), size)


def check(unsigned char[::1] header, uint64_t room):
    """Status and size of the payload; ``room`` is what it may take."""
    return cry_region_check(_at(header), room), _at(header).size


def write_begin(unsigned char[::1] header, double timeout):
    """Status of becoming the writer."""
    cdef cry_region *region = _at(header)
    cdef int64_t until = _until(timeout)
    cdef int status
    while True:
        with nogil:
            status = cry_region_write_begin(region, min(until, cry_nanoseconds() + SLICE))
        try:
            # One that came while we waited: its handler must not raise when the region is ours.
            PyErr_CheckSignals()
        except:
            if status == CRY_REGION_OK:
                cry_region_write_end(region)
            raise
        if status != CRY_REGION_TIMEOUT or cry_nanoseconds() >= until:
            return status


def write_end(unsigned char[::1] header):
    """Status of ending the write."""
    return <int> cry_region_write_end(_at(header))


def write(unsigned char[::1] header, unsigned char[::1] payload, list parts, double timeout):
    """Status of one whole write of the parts, end to end; all but the last are whole words.

    A signal's handler cannot run inside it, so none can leave the region locked.
    """
    cdef unsigned char *to = &payload[0]
    cdef const unsigned char[::1] part
    cdef uint64_t at = 0, bytes
    cdef int status = write_begin(header, timeout)
    if status != CRY_REGION_OK:
        return status
    try:
        for part in parts:
            bytes = part.shape[0]
            with nogil:
                cry_region_store(to, at, &part[0], bytes)
            at += bytes
    finally:
        cry_region_write_end(_at(header))
    return status


def read(unsigned char[::1] header, const unsigned char[::1] payload, unsigned char[::1] out,
         double timeout):
    """Status and version; with OK the first bytes of the payload of that version are in out."""
    cdef cry_region *region = _at(header)
    cdef int64_t until = _until(timeout)
    cdef uint64_t version = 0
    cdef int status
    cdef const unsigned char *source = &payload[0]
    cdef unsigned char *to = &out[0]
    cdef uint64_t bytes = out.shape[0]
    while True:
        with nogil:
            status = cry_region_read_begin(region, min(until, cry_nanoseconds() + SLICE), &version)
            if status == CRY_REGION_OK:
                cry_region_load(to, source, 0, bytes)
                status = cry_region_read_end(region, version)
        if status == CRY_REGION_OK or status == CRY_REGION_TORN:
            return status, version
        if cry_nanoseconds() >= until:
            return CRY_REGION_TIMEOUT, version
        PyErr_CheckSignals()


def version(unsigned char[::1] header):
    """Even: whole."""
    return cry_region_version(_at(header))


def writer(unsigned char[::1] header):
    """The process that writes, or died writing; 0 for none."""
    return cry_region_writer(_at(header))


def counters(unsigned char[::1] header):
    """Reads, writes, copies and retries so far, of all processes."""
    cdef cry_region *region = _at(header)
    return region.reads, region.writes, region.copies, region.retries


def copied(unsigned char[::1] header):
    """Counts a private copy."""
    cry_region_copied(_at(header))
