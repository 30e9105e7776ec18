/* Sending, receiving and waiting.  The design stands in include/crystalline/queue.h.
 *
 * Which words may be seen.  Positions are 64-bit counts, of which a word has the low 48 bits; at a
 * position p the slot is p mod capacity.  While the head stays h, its slot may hold
 *     FREE(h) or READING(h - capacity)        nothing to receive
 *     CLAIMED(h), FULL(h)                     a message to come, a message
 *     READING(h), any state at h + capacity   the head is behind: h was taken, or has no message
 * and while the tail stays t, its slot may hold
 *     FREE(t)                                 room
 *     any other at t, any at t + capacity     the tail is behind
 *     CLAIMED, FULL or READING(t - capacity)  no room
 * Anything else was not written by this file.  Indices come from the handle's own capacity, so that
 * a spoilt word can be an error, but never a write outside the memory.
 *
 * A word never returns to an earlier value, so a swap from what was looked at acts on exactly what
 * was looked at.  Two swaps make a send, and two a receive: the claim, which gets the slot to one
 * owner, and the end's, which is also the fence before the look at the sleepers. */
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "queue_layout.h"

enum {
    SPINS = 64,  /* looks before sleeping, */
    PAUSES = 16, /* and pauses between two: each look takes the line from who is at work on it */
    SLICE = 100000000, /* nanoseconds a sleeper sleeps, and waits between looks at who lives */
};

/* One send or receive, with what kept its last attempt from ending: slots that somebody is at work
 * on.  All are kept, as one's owner may be stopped and another's dead. */
typedef struct call {
    cry_message *out;      /* a receive's, otherwise NULL */
    const cry_message *in; /* a send's */
    unsigned blocked;      /* bit r: there is one in ring r, */
    uint64_t blockers[CRY_PRIORITIES]; /* and this is its word */
} call;

static void block(call *c, int r, uint64_t word)
{
    c->blocked |= 1u << r;
    c->blockers[r] = word;
}

/* The number of this process, which a child after a fork has yet to get; 0 when it cannot. */
static uint64_t participant(cry_queue *q, cry_queue_status *status)
{
    uint64_t joined = atomic_load_explicit(&q->joined, memory_order_relaxed);
    if (joined >> 32 != atomic_load_explicit(&cry_fork_generation, memory_order_relaxed)) {
        *status = cry_queue_enter(q);
        if (*status != CRY_QUEUE_OK) return 0;
        joined = atomic_load(&q->joined);
    }
    return joined & 0x3fff;
}

/* The end of a send or receive: gives the slot on in its next state, and tells who sleeps.  Others
 * may have moved the end on since the claim.  A claim that is no longer there was overwritten. */
static cry_queue_status give_on(slot *s, uint64_t claim, uint64_t next, _Atomic uint64_t *end,
                                uint64_t position, atomic_uint *sleepers)
{
    if (atomic_load_explicit(&s->word, memory_order_relaxed) != claim) return CRY_QUEUE_CORRUPT;
    /* Pairs with the swap by which the next one claims the slot, and sees the message in it. */
    atomic_store_explicit(&s->word, next, memory_order_release);
    wake(sleepers, swap(end, position, position + 1));
    return CRY_QUEUE_OK;
}

/* The claim at `position` is ours: the message goes in, or, on a closed queue, the claim back. */
static cry_queue_status fill(cry_queue *q, int r, uint64_t position, uint64_t claim,
                             const cry_message *message)
{
    header *h = q->shared;
    slot *s = slot_at(q, r, position);
    /* A receiver that saw the queue closed, and then no claim, has told its caller that nothing
     * will come: this look comes after the claim, so one of the two sees the other. */
    if (atomic_load(&h->closed)) {
        atomic_fetch_add(&h->withdrawn, 1);
        give_on(s, claim, word_of(position + q->capacity, FREE, 0), &h->rings[r].tail, position,
                &h->filled);
        return CRY_QUEUE_CLOSED;
    }
    s->message = *message;
    return give_on(s, claim, word_of(position, FULL, 0), &h->rings[r].tail, position, &h->filled);
}

static cry_queue_status try_send(cry_queue *q, call *c)
{
    int r = c->in->priority;
    ring *ends = q->shared->rings + r;
    cry_queue_status status;
    uint64_t me = participant(q, &status);
    c->blocked = 0;
    if (!me) return status;
    for (;;) {
        if (atomic_load(&q->shared->closed)) return CRY_QUEUE_CLOSED;
        uint64_t tail = atomic_load(&ends->tail);
        slot *s = slot_at(q, r, tail);
        uint64_t word = atomic_load(&s->word), ahead = (position_of(word) - tail) & CRY_POSITIONS;
        enum slot_state state = state_of(word);
        if (ahead == 0 && state == FREE) {
            uint64_t claim = word_of(tail, CLAIMED, me);
            if (swap(&s->word, word, claim)) return fill(q, r, tail, claim, c->in);
        } else if (ahead == 0 || ahead == q->capacity) {
            move_on(&ends->tail, tail);
        } else if (ahead == (-q->capacity & CRY_POSITIONS) && state != FREE) {
            if (state == READING) block(c, r, word);
            return CRY_QUEUE_FULL;
        } else if (atomic_load(&ends->tail) == tail) {
            return CRY_QUEUE_CORRUPT;
        }
    }
}

static cry_queue_status try_ring(cry_queue *q, int r, uint64_t me, call *c)
{
    ring *ends = q->shared->rings + r;
    for (;;) {
        uint64_t head = atomic_load(&ends->head);
        slot *s = slot_at(q, r, head);
        uint64_t word = atomic_load(&s->word), ahead = (position_of(word) - head) & CRY_POSITIONS;
        enum slot_state state = state_of(word);
        if (ahead == 0 && state == FREE) return CRY_QUEUE_EMPTY;
        if (ahead == 0 && state == CLAIMED) {
            block(c, r, word);
            return CRY_QUEUE_EMPTY;
        }
        if (ahead == 0 && state == FULL) {
            uint64_t claim = word_of(head, READING, me);
            if (!swap(&s->word, word, claim)) continue;
            *c->out = s->message;
            return give_on(s, claim, word_of(head + q->capacity, FREE, 0), &ends->head, head,
                           &q->shared->freed);
        } else if (ahead == 0 || ahead == q->capacity) {
            move_on(&ends->head, head);
        } else if (ahead == (-q->capacity & CRY_POSITIONS) && state == READING) {
            return CRY_QUEUE_EMPTY;
        } else if (atomic_load(&ends->head) == head) {
            return CRY_QUEUE_CORRUPT;
        }
    }
}

static cry_queue_status try_receive(cry_queue *q, call *c)
{
    cry_queue_status status;
    uint64_t me = participant(q, &status);
    /* Read before the rings are: see `fill`. */
    int closed = atomic_load(&q->shared->closed) != 0;
    c->blocked = 0;
    if (!me) return status;
    for (int r = 0; r < CRY_PRIORITIES; r++) {
        status = try_ring(q, r, me, c);
        if (status != CRY_QUEUE_EMPTY) return status;
    }
    return closed && !c->blocked ? CRY_QUEUE_CLOSED : CRY_QUEUE_EMPTY;
}

static cry_queue_status attempt(cry_queue *q, call *c)
{
    return c->out ? try_receive(q, c) : try_send(q, c);
}

static int undecided(cry_queue_status status)
{
    return status == CRY_QUEUE_FULL || status == CRY_QUEUE_EMPTY;
}

static void pause_briefly(void)
{
#if defined(__SSE__)
    for (int i = 0; i < PAUSES; i++) _mm_pause();
#endif
}

static cry_queue_status spin(cry_queue *q, call *c, cry_queue_status status)
{
    for (int i = 0; i < SPINS && undecided(status); i++) {
        pause_briefly();
        status = attempt(q, c);
    }
    return status;
}

/* Sleeps for up to `nanoseconds`, then attempts again. */
static cry_queue_status sleep_once(cry_queue *q, call *c, int64_t nanoseconds)
{
    atomic_uint *sleepers = c->out ? &q->shared->filled : &q->shared->freed;
    /* Announced before looking once more: whoever changes a slot after that look wakes us. */
    unsigned announced = atomic_fetch_or(sleepers, 1) | 1;
    cry_queue_status status = attempt(q, c);
    if (!undecided(status)) return status;
    cry_sleep_shared(sleepers, announced, nanoseconds);
    return attempt(q, c);
}

/* Takes back what the dead keep blocked.  1 when anything was settled, -1 on an unknown owner. */
static int settle(cry_queue *q, const call *c)
{
    int settled = 0;
    for (int r = 0; r < CRY_PRIORITIES; r++) {
        int done = c->blocked >> r & 1 ? cry_queue_reap(q, r, c->blockers[r]) : 0;
        if (done < 0) return -1;
        if (done > 0) settled = 1;
    }
    return settled;
}

/* The first attempt ended with `status`, full or empty; `nanoseconds` is how long it may take. */
static cry_queue_status wait_for(cry_queue *q, call *c, cry_queue_status status,
                                 int64_t nanoseconds)
{
    /* Half a slice: a call that may take a whole one looks before it ends. */
    int64_t begun = cry_nanoseconds(), look = begun + SLICE / 2;
    while (undecided(status)) {
        status = spin(q, c, status);
        if (!undecided(status)) break;
        int settled = settle(q, c);
        if (settled < 0) return CRY_QUEUE_CORRUPT;
        if (settled > 0) {
            status = attempt(q, c);
            continue;
        }
        int64_t slice = SLICE, left = nanoseconds - (cry_nanoseconds() - begun);
        if (nanoseconds >= 0 && left <= 0) break;
        if (nanoseconds >= 0 && left < slice) slice = left;
        status = sleep_once(q, c, slice);
        /* By the clock, as signals may end every sleep early. */
        if (!undecided(status) || cry_nanoseconds() < look) continue;
        look = cry_nanoseconds() + SLICE;
        if (!cry_queue_alone(q)) continue;
        /* What the last of the others sent was there before it was found dead. */
        status = attempt(q, c);
        if (undecided(status) && !c->blocked) return CRY_QUEUE_ALONE;
    }
    return status;
}

cry_queue_status cry_queue_offer(cry_queue *q, const cry_message *message, int64_t nanoseconds)
{
    call c = {.in = message};
    if (message->priority >= CRY_PRIORITIES) return CRY_QUEUE_BAD_ARGUMENT;
    cry_queue_status status = try_send(q, &c);
    if (status != CRY_QUEUE_FULL || (nanoseconds == 0 && !c.blocked)) return status;
    return wait_for(q, &c, status, nanoseconds);
}

cry_queue_status cry_queue_send(cry_queue *q, const cry_message *message, int64_t nanoseconds)
{
    cry_queue_status status = cry_queue_offer(q, message, nanoseconds);
    if (status == CRY_QUEUE_FULL) atomic_fetch_add(&q->shared->dropped, 1);
    return status;
}

cry_queue_status cry_queue_receive(cry_queue *q, cry_message *message, int64_t nanoseconds)
{
    call c = {.out = message};
    cry_queue_status status = try_receive(q, &c);
    if (status != CRY_QUEUE_EMPTY || (nanoseconds == 0 && !c.blocked)) return status;
    return wait_for(q, &c, status, nanoseconds);
}

void cry_queue_close(cry_queue *q)
{
    atomic_store(&q->shared->closed, 1);
    wake(&q->shared->filled, 0);
    wake(&q->shared->freed, 0);
}
