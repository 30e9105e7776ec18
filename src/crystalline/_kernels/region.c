/* The seqlock of region.h.
 *
 *   writer                                      reader
 *   owner    0 -> me                            v = version, must be even   (acquire: d)
 *   version  even -> odd                        load words, relaxed
 *   full fence                           (a)    acquire fence               (b)
 *   store words, relaxed                        version must still be v
 *   full fence
 *   version  odd -> even   (release)     (c)
 *   owner    me -> 0
 *
 * (a) pairs with (b): a reader that saw one new word sees the odd version, or a later one, and reads
 * again.  (c) pairs with (d): a reader that began with the even version sees all words of that write.
 * A release fence would do at (a) for our own stores; but a caller may write through a plain view,
 * and memcpy's non-temporal stores are ordered by a full fence only. */
#define _POSIX_C_SOURCE 200809L
#include "crystalline/region.h"

#include <string.h>
#include <unistd.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "system.h"

enum { PID_BITS = 22, WORD = 8 };
#define SPIN_NANOSECONDS 20000  /* a small write is over by then */
#define SLICE_NANOSECONDS 5000000 /* between two looks at whether the writer lives */

typedef _Atomic uint64_t word;

/* Names this process for ever; 0 where /proc does not tell when it was started. */
static uint64_t own_identity(void)
{
    int64_t pid = getpid();
    uint64_t start = cry_process_start(pid);
    return start && start != CRY_START_UNKNOWN ? start << PID_BITS | (uint64_t)pid : 0;
}

static int64_t pid_of(uint64_t owner) { return (int64_t)(owner & ((1u << PID_BITS) - 1)); }

/* One of whom we cannot see when it was started may live, and is waited for. */
static int is_dead(uint64_t owner)
{
    uint64_t start = owner ? cry_process_start(pid_of(owner)) : CRY_START_UNKNOWN;
    return start != CRY_START_UNKNOWN && start != owner >> PID_BITS;
}

void cry_region_format(cry_region *region, uint64_t size)
{
    region->format = CRY_REGION_FORMAT;
    region->size = size;
    atomic_store_explicit(&region->magic, CRY_REGION_MAGIC, memory_order_release);
}

cry_region_status cry_region_check(const cry_region *region, uint64_t room)
{
    /* Pairs with the release in format: format and size are there with the magic. */
    if (atomic_load_explicit(&region->magic, memory_order_acquire) != CRY_REGION_MAGIC)
        return CRY_REGION_NO_MAGIC;
    if (region->format != CRY_REGION_FORMAT) return CRY_REGION_BAD_FORMAT;
    return region->size > room ? CRY_REGION_TRUNCATED : CRY_REGION_OK;
}

/* Waits for a turn after `turn`, but not for long: spins until `spin`, then sleeps.  0 once it is
 * `until`. */
static int wait_a_little(const cry_region *region, unsigned turn, int64_t spin, int64_t until)
{
    int64_t now = cry_nanoseconds();
    if (now >= until) return 0;
    if (now >= spin) {
        int64_t left = until - now;
        cry_sleep_shared(&region->turn, turn, left < SLICE_NANOSECONDS ? left : SLICE_NANOSECONDS);
        return 1;
    }
#if defined(__SSE__)
    for (int i = 0; i < 8; i++) _mm_pause();
#endif
    return 1;
}

cry_region_status cry_region_write_begin(cry_region *region, int64_t until)
{
    uint64_t me = own_identity();
    int64_t spin = cry_nanoseconds() + SPIN_NANOSECONDS;
    if (!me) return CRY_REGION_NO_IDENTITY;
    for (;;) {
        /* Read before the owner: a write that ends after this look moves turn on, and we do not
         * sleep.  Pairs with the addition in write_end. */
        unsigned turn = atomic_load_explicit(&region->turn, memory_order_acquire);
        uint64_t owner = atomic_load_explicit(&region->owner, memory_order_acquire);
        if (owner == 0 || (owner != me && cry_nanoseconds() >= spin && is_dead(owner))) {
            /* Its acquire pairs with the release that gave the region back.  From a dead owner only
             * one can take over: its name never comes again. */
            if (atomic_compare_exchange_strong(&region->owner, &owner, me)) break;
        } else if (!wait_a_little(region, turn, spin, until)) {
            return CRY_REGION_TIMEOUT;
        }
    }
    /* Odd already where a dead owner left it.  The release makes the owner visible with it, to the
     * acquire in read_begin. */
    uint64_t version = atomic_load_explicit(&region->version, memory_order_relaxed);
    atomic_store_explicit(&region->version, version | 1, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst); /* (a) */
    return CRY_REGION_OK;
}

cry_region_status cry_region_write_end(cry_region *region)
{
    /* A child forked inside a write must not end its parent's. */
    if (cry_region_writer(region) != getpid()) return CRY_REGION_NOT_WRITER;
    atomic_thread_fence(memory_order_seq_cst); /* for plain views, as above */
    uint64_t version = atomic_load_explicit(&region->version, memory_order_relaxed);
    atomic_store_explicit(&region->version, version + 1, memory_order_release); /* (c) */
    atomic_fetch_add_explicit(&region->writes, 1, memory_order_relaxed);
    /* Pairs with the claim in write_begin.  Who dies before it leaves an even version, which the
     * next writer finds as it should be. */
    atomic_store_explicit(&region->owner, 0, memory_order_release);
    atomic_fetch_add_explicit(&region->turn, 1, memory_order_release);
    cry_wake_shared(&region->turn);
    return CRY_REGION_OK;
}

void cry_region_store(void *payload, uint64_t at, const void *data, uint64_t bytes)
{
    word *to = (word *)((char *)payload + at);
    const char *from = data;
    uint64_t value;
    for (; bytes >= WORD; bytes -= WORD, from += WORD, to++) {
        memcpy(&value, from, WORD);
        atomic_store_explicit(to, value, memory_order_relaxed);
    }
    if (bytes) { /* the bytes after the last stay; only we write */
        value = atomic_load_explicit(to, memory_order_relaxed);
        memcpy(&value, from, bytes);
        atomic_store_explicit(to, value, memory_order_relaxed);
    }
}

/* Whether the write that made `version` odd will never end.  Looks again afterwards: it may have
 * ended, or another writer may have taken over, while we asked. */
static int is_torn(const cry_region *region, uint64_t version)
{
    uint64_t owner = atomic_load_explicit(&region->owner, memory_order_acquire);
    return is_dead(owner) &&
           atomic_load_explicit(&region->owner, memory_order_acquire) == owner &&
           atomic_load_explicit(&region->version, memory_order_acquire) == version;
}

cry_region_status cry_region_read_begin(const cry_region *region, int64_t until, uint64_t *version)
{
    int64_t spin = 0;
    for (;;) {
        /* Before the version, as in write_begin. */
        unsigned turn = atomic_load_explicit(&region->turn, memory_order_acquire);
        *version = atomic_load_explicit(&region->version, memory_order_acquire); /* (d) */
        if (*version % 2 == 0) return CRY_REGION_OK;
        if (!spin) spin = cry_nanoseconds() + SPIN_NANOSECONDS;
        else if (cry_nanoseconds() >= spin && is_torn(region, *version)) return CRY_REGION_TORN;
        if (!wait_a_little(region, turn, spin, until)) return CRY_REGION_TIMEOUT;
    }
}

void cry_region_load(void *out, const void *payload, uint64_t at, uint64_t bytes)
{
    const word *from = (const word *)((const char *)payload + at);
    char *to = out;
    uint64_t value;
    for (; bytes >= WORD; bytes -= WORD, to += WORD, from++) {
        value = atomic_load_explicit(from, memory_order_relaxed);
        memcpy(to, &value, WORD);
    }
    if (bytes) {
        value = atomic_load_explicit(from, memory_order_relaxed);
        memcpy(to, &value, bytes);
    }
}

cry_region_status cry_region_read_end(cry_region *region, uint64_t version)
{
    atomic_thread_fence(memory_order_acquire); /* (b) */
    int same = atomic_load_explicit(&region->version, memory_order_relaxed) == version;
    atomic_fetch_add_explicit(same ? &region->reads : &region->retries, 1, memory_order_relaxed);
    return same ? CRY_REGION_OK : CRY_REGION_CHANGED;
}

uint64_t cry_region_version(const cry_region *region)
{
    return atomic_load_explicit(&region->version, memory_order_acquire); /* pairs with (c) */
}

int64_t cry_region_writer(const cry_region *region)
{
    return pid_of(atomic_load_explicit(&region->owner, memory_order_acquire)); /* with the claim */
}

void cry_region_copied(cry_region *region)
{
    atomic_fetch_add_explicit(&region->copies, 1, memory_order_relaxed);
}
