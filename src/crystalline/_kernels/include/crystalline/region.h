/* A region: a block of bytes with a version, shared between processes.
 *
 * Many read at once, one writes at a time, and a reader never holds a writer up: it copies, and
 * copies again if the version says that a write came between (a seqlock).  Header and payload lie
 * apart, so that a reader may map the payload for reading only.
 *
 *     write:  write_begin; store ...; write_end
 *     read:   do { read_begin; load ... } while (read_end == CRY_REGION_CHANGED)
 *
 * A process that dies in the middle of a write leaves an odd version and its name as the owner.
 * Readers are told so, and the next writer takes the region over.  Who is alive is asked of /proc:
 * all processes must be of one process namespace.
 *
 * Times are of `cry_nanoseconds`.  Offsets are multiples of eight, payloads begin at one and have
 * room up to the next. */
#ifndef CRYSTALLINE_REGION_H
#define CRYSTALLINE_REGION_H

#include <stdatomic.h>
#include <stdint.h>

#define CRY_REGION_MAGIC 0x6e6f696765727963u /* "cyregion" */
#define CRY_REGION_FORMAT 1u

typedef enum cry_region_status {
    CRY_REGION_OK = 0,
    CRY_REGION_CHANGED,     /* written to while it was read: read again */
    CRY_REGION_TIMEOUT,     /* `until` came first */
    CRY_REGION_TORN,        /* its writer died in the middle of a write */
    CRY_REGION_NOT_WRITER,  /* the caller's process does not write at the moment */
    CRY_REGION_NO_IDENTITY, /* /proc does not tell who the caller is */
    CRY_REGION_NO_MAGIC,    /* the memory holds no region, or one that is not made yet */
    CRY_REGION_BAD_FORMAT,  /* a region of another version of this library */
    CRY_REGION_TRUNCATED,   /* less room than the header says */
} cry_region_status;

typedef struct cry_region {
    _Atomic uint64_t magic; /* stored last, with release: pairs with the acquire in check */
    uint32_t format;
    atomic_uint turn;         /* counts ended writes; who waits sleeps on it */
    uint64_t size;            /* bytes of the payload */
    _Atomic uint64_t version; /* even: whole.  Odd: being written, or its writer died */
    /* Who writes, 0 for nobody: the process number in the low 22 bits, all that Linux gives out, and
     * its start above them.  One word, so that claiming and signing are one step. */
    _Atomic uint64_t owner;
    uint64_t rest_of_line[3];
    _Atomic uint64_t reads, writes, copies, retries; /* tallies: nothing waits for them */
    uint64_t rest_of_header[4];
} cry_region;

_Static_assert(sizeof(cry_region) == 128, "the header is the same for every process");

/* A new region in zeroed memory; nobody else knows it yet. */
void cry_region_format(cry_region *region, uint64_t size);
/* Whether this is a region whose payload has `room`. */
cry_region_status cry_region_check(const cry_region *region, uint64_t room);

/* The caller's process becomes the writer; waits for another that lives: OK, TIMEOUT, NO_IDENTITY.
 * A thread that writes already would wait for itself. */
cry_region_status cry_region_write_begin(cry_region *region, int64_t until);
/* What was stored is whole: OK, NOT_WRITER. */
cry_region_status cry_region_write_end(cry_region *region);
/* Between begin and end. */
void cry_region_store(void *payload, uint64_t at, const void *data, uint64_t bytes);

/* OK, TIMEOUT, TORN. */
cry_region_status cry_region_read_begin(const cry_region *region, int64_t until, uint64_t *version);
/* What is loaded counts only if read_end says OK. */
void cry_region_load(void *out, const void *payload, uint64_t at, uint64_t bytes);
/* OK, CHANGED. */
cry_region_status cry_region_read_end(cry_region *region, uint64_t version);

uint64_t cry_region_version(const cry_region *region);
/* The process that writes or died writing, 0 for none. */
int64_t cry_region_writer(const cry_region *region);
/* A reader has made a private copy. */
void cry_region_copied(cry_region *region);

#endif
