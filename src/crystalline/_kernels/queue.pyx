# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True, binding=False
"""The message queue for Python: one attempt under the interpreter lock, waiting without it."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcmp

from crystalline.errors import (CrystallineError, QueueAlone, QueueClosed, QueueCorrupt,
                                UsageError)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef extern from "system.h" nogil:
    int64_t cry_nanoseconds()

cdef extern from "crystalline/queue.h" nogil:
    ctypedef enum cry_queue_status:
        CRY_QUEUE_OK, CRY_QUEUE_FULL, CRY_QUEUE_EMPTY, CRY_QUEUE_CLOSED, CRY_QUEUE_ALONE
        CRY_QUEUE_CORRUPT, CRY_QUEUE_CROWDED, CRY_QUEUE_NO_PROC, CRY_QUEUE_NO_MEMORY
        CRY_QUEUE_BAD_ARGUMENT
    ctypedef struct cry_message:
        uint16_t type
        uint8_t priority, flags
        int32_t sphere
        int64_t ticket, step
        double values[4]
    ctypedef struct cry_queue_counters:
        uint64_t sent, received, dropped, skipped, lost
        int64_t depth[4]
    ctypedef struct cry_queue:
        pass
    int64_t cry_queue_bytes(int64_t capacity)
    cry_queue_status cry_queue_init(void *memory, int64_t bytes, int64_t capacity)
    cry_queue_status cry_queue_join(cry_queue **queue, void *memory, int64_t bytes, int shared)
    void cry_queue_free(cry_queue *queue)
    cry_queue_status cry_queue_send(cry_queue *queue, const cry_message *message, int64_t ns)
    cry_queue_status cry_queue_offer(cry_queue *queue, const cry_message *message, int64_t ns)
    cry_queue_status cry_queue_receive(cry_queue *queue, cry_message *message, int64_t ns)
    void cry_queue_close(cry_queue *queue)
    int cry_queue_closed(const cry_queue *queue)
    int64_t cry_queue_capacity(const cry_queue *queue)
    cry_queue_counters cry_queue_count(const cry_queue *queue)

cdef int64_t SLICE = 100000000  # nanoseconds a wait may hold up a signal's handler
cdef double LONGEST = 1e9  # seconds; a longer wait is one for ever


cdef int _within(str name, int64_t value, int64_t least, int64_t most) except -1:
    if not least <= value <= most:
        raise UsageError(f"SphereMessage: {name} is {value}, but must be {least} to {most}")
    return 0


@cython.final
@cython.freelist(64)
cdef class SphereMessage:
    """One message: what it is (``type``, ``flags``), how urgent (``priority``, 0 the most, to 3),
    whom it is about (``sphere``), which it is (``ticket``, ``step``), and up to four floats.

    The meaning of all but ``priority`` is the sender's.  Messages cannot be changed.
    """

    cdef cry_message c

    def __init__(self, int64_t type, int64_t priority=1, int64_t sphere=-1, int64_t ticket=0,
                 int64_t step=0, values=(), *, int64_t flags=0):
        cdef Py_ssize_t i, given = len(values)
        _within("type", type, 0, 0xffff)
        _within("priority", priority, 0, 3)
        _within("sphere", sphere, -0x80000000, 0x7fffffff)
        _within("flags", flags, 0, 0xff)
        if given > 4:
            raise UsageError(f"SphereMessage: {given} values, but a message holds four")
        self.c.type, self.c.flags = <uint16_t> type, <uint8_t> flags
        self.c.priority = <uint8_t> priority
        self.c.sphere, self.c.ticket, self.c.step = <int32_t> sphere, ticket, step
        for i in range(4):
            self.c.values[i] = values[i] if i < given else 0.0

    @property
    def type(self):
        return self.c.type

    @property
    def priority(self):
        return self.c.priority

    @property
    def flags(self):
        return self.c.flags

    @property
    def sphere(self):
        return self.c.sphere

    @property
    def ticket(self):
        return self.c.ticket

    @property
    def step(self):
        return self.c.step

    @property
    def values(self):
        """The four floats; those that were not given are 0.0."""
        return self.c.values[0], self.c.values[1], self.c.values[2], self.c.values[3]

    def __eq__(self, other):
        """Whether every bit is the same."""
        if not isinstance(other, SphereMessage):
            return NotImplemented
        return memcmp(&self.c, &(<SphereMessage> other).c, sizeof(self.c)) == 0

    def __hash__(self):
        return hash((self.c.type, self.c.sphere, self.c.ticket, self.c.step))

    def __repr__(self):
        return (f"SphereMessage(type={self.c.type}, priority={self.c.priority}, "
                f"sphere={self.c.sphere}, ticket={self.c.ticket}, step={self.c.step}, "
                f"values={self.values}, flags={self.c.flags})")


cdef object _refuse(cry_queue_status status):
    if status == CRY_QUEUE_CLOSED:
        raise QueueClosed("the queue is closed")
    if status == CRY_QUEUE_CORRUPT:
        raise QueueCorrupt("the memory of the queue is not one, or something else wrote to it; "
                           "make a new queue")
    if status == CRY_QUEUE_ALONE:
        raise QueueAlone("every other process that joined the queue is dead")
    if status == CRY_QUEUE_CROWDED:
        raise CrystallineError("64 living processes use the queue already; one of them must end")
    if status == CRY_QUEUE_NO_PROC:
        raise CrystallineError("/proc does not tell when this process was started; mount it")
    raise MemoryError("no memory for a queue's handle")


cdef double _seconds(object timeout) except -1:
    cdef double seconds = INFINITY if timeout is None else timeout
    if not seconds >= 0:
        raise UsageError(f"timeout is {timeout}, but must be None or a number of seconds from 0 on")
    return seconds


@cython.final
cdef class MessageQueue:
    """A bounded queue of SphereMessages between any number of threads and processes.

    Each of the four priorities has room for ``capacity`` messages, a power of two (1024).  Without
    ``buffer`` the queue is this process's own.  With one, a writable buffer on a 64-byte border, say
    ``SharedMemory.buf``, it lies there, newly made or (``create=False``) as others left it; a
    capacity given then must be the one it has.  The buffer cannot be closed before the queue goes.
    """

    cdef cry_queue *queue
    cdef void *own
    cdef object buffer

    def __cinit__(self, capacity=None, *, buffer=None, create=True):
        cdef int64_t size, bytes
        cdef unsigned char[::1] view
        cdef void *memory
        cdef cry_queue_status status
        size = bytes = self.bytes_needed(1024 if capacity is None else capacity)
        if buffer is None:
            if not create:
                raise UsageError("there is no queue to join without a buffer that it lies in")
            if posix_memalign(&self.own, 64, <size_t> size):
                raise MemoryError(f"no memory for a queue of {size} bytes")
            memory = self.own
        else:
            view = buffer
            self.buffer = view
            bytes = view.shape[0]
            if create and bytes < size:
                raise UsageError(f"the buffer has {bytes} bytes, but a queue of this capacity "
                                 f"needs {size}")
            memory = &view[0] if bytes else NULL
            if <uintptr_t> memory % 64:
                raise UsageError("the buffer must begin at a multiple of 64 bytes")
        if create:
            cry_queue_init(memory, bytes, 1024 if capacity is None else capacity)
        status = cry_queue_join(&self.queue, memory, bytes, buffer is not None)
        if status != CRY_QUEUE_OK:
            _refuse(status)
        if capacity is not None and capacity != self.capacity:
            raise UsageError(f"capacity is {capacity}, but the queue was made with {self.capacity}")

    def __dealloc__(self):
        cry_queue_free(self.queue)
        free(self.own)

    @staticmethod
    def bytes_needed(capacity):
        """Bytes of a buffer for a queue of that capacity."""
        cdef int64_t size = cry_queue_bytes(capacity) if 2 <= capacity <= 1 << 24 else 0
        if not size:
            raise UsageError(f"capacity is {capacity}, but must be a power of two from 2 to 2**24")
        return size

    # The two that do not wait take no keywords: then a call passes its argument as it is.

    @cython.always_allow_keywords(False)
    def send(self, SphereMessage message not None):
        """Sends the message; False when there is no room, and it is counted as dropped.

        Raises QueueClosed, and QueueCorrupt when something else wrote to the memory.
        """
        cdef cry_queue_status status = cry_queue_send(self.queue, &message.c, 0)
        if status == CRY_QUEUE_OK:
            return True
        if status == CRY_QUEUE_FULL:
            return False
        _refuse(status)

    @cython.always_allow_keywords(False)
    def receive(self):
        """The first message of the most urgent priority that has one, or None.

        Raises QueueClosed when the queue is closed and empty, and QueueCorrupt.
        """
        cdef SphereMessage message = SphereMessage.__new__(SphereMessage)
        cdef cry_queue_status status = cry_queue_receive(self.queue, &message.c, 0)
        if status == CRY_QUEUE_OK:
            return message
        if status == CRY_QUEUE_EMPTY:
            return None
        _refuse(status)

    def send_wait(self, SphereMessage message not None, timeout=None):
        """As ``send``, but waits for room, ``timeout`` seconds at most (None: for ever).

        Raises QueueAlone too, when it waited and every other process that joined is dead.
        """
        cdef double seconds = _seconds(timeout)
        cdef cry_queue_status status = cry_queue_offer(self.queue, &message.c, 0)
        if status == CRY_QUEUE_FULL:
            status = self._wait(&message.c, NULL, seconds)
        if status == CRY_QUEUE_OK:
            return True
        if status == CRY_QUEUE_FULL:
            return False
        _refuse(status)

    def receive_wait(self, timeout=None):
        """As ``receive``, but waits for a message, ``timeout`` seconds at most (None: for ever).

        Raises QueueAlone too, when it waited and every other process that joined is dead.
        """
        cdef double seconds = _seconds(timeout)
        cdef SphereMessage message = SphereMessage.__new__(SphereMessage)
        cdef cry_queue_status status = cry_queue_receive(self.queue, &message.c, 0)
        if status == CRY_QUEUE_EMPTY:
            status = self._wait(NULL, &message.c, seconds)
        if status == CRY_QUEUE_OK:
            return message
        if status == CRY_QUEUE_EMPTY:
            return None
        _refuse(status)

    cdef cry_queue_status _wait(self, const cry_message *sent, cry_message *got,
                                double seconds) except *:
        """Sends or receives in slices without the interpreter lock; signals are seen between."""
        cdef cry_queue_status status
        cdef int64_t left = 0, begun = cry_nanoseconds()
        cdef int64_t whole = <int64_t> (min(seconds, LONGEST) * 1e9)
        while True:
            left = SLICE if seconds > LONGEST else whole - (cry_nanoseconds() - begun)
            with nogil:
                if got != NULL:
                    status = cry_queue_receive(self.queue, got, max(0, min(left, SLICE)))
                elif left < SLICE:
                    status = cry_queue_send(self.queue, sent, max(0, left))
                else:
                    status = cry_queue_offer(self.queue, sent, SLICE)
            if (status != CRY_QUEUE_FULL and status != CRY_QUEUE_EMPTY) or left < SLICE:
                return status
            PyErr_CheckSignals()

    def close(self):
        """Closes the queue for good: sending ends at once, receiving when nothing is left."""
        cry_queue_close(self.queue)

    @property
    def closed(self):
        return cry_queue_closed(self.queue) != 0

    @property
    def capacity(self):
        """Messages each priority has room for."""
        return cry_queue_capacity(self.queue)

    def counters(self):
        """Messages ``sent``, ``received``, ``dropped`` for want of room; slots ``skipped`` since
        their sender died while writing; messages ``lost`` since their receiver died while reading;
        ``depth``, how many wait in each priority."""
        cdef cry_queue_counters c = cry_queue_count(self.queue)
        return {"sent": c.sent, "received": c.received, "dropped": c.dropped, "skipped": c.skipped,
                "lost": c.lost, "depth": (c.depth[0], c.depth[1], c.depth[2], c.depth[3])}

    def __len__(self):
        cdef cry_queue_counters c = cry_queue_count(self.queue)
        return c.depth[0] + c.depth[1] + c.depth[2] + c.depth[3]
