/* Inside a queue: what lies in its memory, and who takes part.  The design stands in
 * include/crystalline/queue.h. */
#ifndef CRY_QUEUE_LAYOUT_H
#define CRY_QUEUE_LAYOUT_H

#include <stdatomic.h>
#include <stdint.h>

#include "crystalline/queue.h"
#include "system.h"

#define CRY_POSITIONS ((UINT64_C(1) << 48) - 1)

enum slot_state { FREE, CLAIMED, FULL, READING };

typedef struct slot {
    _Alignas(64) _Atomic uint64_t word;
    cry_message message;
} slot;

/* Ends on lines of their own: senders write one, receivers the other. */
typedef struct ring {
    _Alignas(64) _Atomic uint64_t tail;
    _Alignas(64) _Atomic uint64_t head;
} ring;

typedef struct header {
    uint64_t magic;
    uint32_t version, slot_bytes;
    int64_t capacity, bytes;
    uint64_t checksum;  /* of the fields above, which never change */
    atomic_uint closed; /* pairs with the look a sender takes after its claim */
    /* Sleepers' words, odd while somebody may be asleep: made odd by who goes to sleep and then
     * looks at the slots again, read by who has changed a slot. */
    _Alignas(64) atomic_uint filled;
    _Alignas(64) atomic_uint freed;
    /* As in cry_queue_counters; withdrawn: claims given back since the queue was closed. */
    _Alignas(64) _Atomic uint64_t dropped;
    _Atomic uint64_t skipped, lost, withdrawn;
    /* Start time and number of each process that joined; 0 where nobody has. */
    _Alignas(64) _Atomic uint64_t participants[CRY_PARTICIPANTS];
    ring rings[CRY_PRIORITIES];
} header;

_Static_assert(sizeof(header) == 1280, "the head is 20 cache lines");
_Static_assert(sizeof(slot) == 64 && sizeof(cry_message) == 56, "a slot is a cache line");

struct cry_queue {
    header *shared;
    slot *slots;
    uint64_t capacity;
    int others;                /* other processes may see the memory */
    _Atomic uint64_t identity; /* of this process, as in participants; written before `joined` */
    _Atomic uint64_t joined;   /* fork generation << 32 | participant */
};

static inline uint64_t word_of(uint64_t position, enum slot_state state, uint64_t who)
{
    return position << 16 | (uint64_t)state << 14 | who;
}

static inline uint64_t position_of(uint64_t word) { return word >> 16; }
static inline enum slot_state state_of(uint64_t word) { return (enum slot_state)(word >> 14 & 3); }
static inline uint64_t owner_of(uint64_t word) { return word & 0x3fff; }

static inline slot *slot_at(const cry_queue *q, int r, uint64_t position)
{
    return q->slots + (uint64_t)r * q->capacity + (position & (q->capacity - 1));
}

static inline int swap(_Atomic uint64_t *word, uint64_t from, uint64_t to)
{
    return atomic_compare_exchange_strong(word, &from, to);
}

/* Moves a head or tail on if it stands at the 48 bits of `position`. */
static inline void move_on(_Atomic uint64_t *end, uint64_t position)
{
    uint64_t at = atomic_load(end);
    if (((at ^ position) & CRY_POSITIONS) == 0) swap(end, at, at + 1);
}

/* After a slot's word was changed.  Who goes to sleep makes the sleepers' word odd and then looks
 * at the slots; here the change comes first and then the look at the sleepers' word, which must not
 * overtake it.  A swap in between is the fence (`fenced`); without one, the look is made a swap. */
static inline void wake(atomic_uint *sleepers, int fenced)
{
    unsigned seen = fenced ? atomic_load(sleepers) : atomic_fetch_or(sleepers, 0);
    /* When this swap fails another has woken them since, and they will find what we did. */
    if (seen & 1 && atomic_compare_exchange_strong(sleepers, &seen, seen + 1))
        cry_wake_shared(sleepers);
}

/* Finds or makes the entry of this process, and keeps its number in q->joined. */
cry_queue_status cry_queue_enter(cry_queue *q);

/* Is every other process that joined dead, and is there any? */
int cry_queue_alone(const cry_queue *q);

/* Takes a slot back whose word names a dead process.  1 when that is settled, 0 when the owner
 * lives, -1 when there is no such participant. */
int cry_queue_reap(cry_queue *q, int r, uint64_t word);

#endif
