/* Who takes part in a queue, what the dead leave behind, and how its memory is made and checked. */
#define _POSIX_C_SOURCE 200809L
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "queue_layout.h"

#define MAGIC UINT64_C(0x4555455551595243) /* CRYQUEUE, read as bytes */

enum {
    VERSION = 1,
    PID_BITS = 22, /* Linux numbers processes below 2^22; the start time has the other 42 bits */
};

static int alive(const cry_queue *q, uint64_t identity)
{
    if (identity == atomic_load(&q->identity)) return 1;
    /* Private memory after a fork: what the copy shows of the parent's threads never goes on. */
    if (!q->others) return 0;
    uint64_t start = cry_process_start((int64_t)(identity & ((1u << PID_BITS) - 1)));
    return start == identity >> PID_BITS || start == CRY_START_UNKNOWN;
}

int cry_queue_alone(const cry_queue *q)
{
    int others = 0;
    for (int i = 0; i < CRY_PARTICIPANTS && q->others; i++) {
        uint64_t identity = atomic_load(&q->shared->participants[i]);
        if (identity == 0 || identity == atomic_load(&q->identity)) continue;
        if (alive(q, identity)) return 0;
        others = 1;
    }
    return others;
}

/* The word was read before the table is: as long as the table names the dead one, so does the word,
 * because nobody gets its number before all its slots are taken back. */
int cry_queue_reap(cry_queue *q, int r, uint64_t word)
{
    header *h = q->shared;
    uint64_t owner = owner_of(word), position = position_of(word), identity = 0;
    slot *s = slot_at(q, r, position);
    if (owner > 0 && owner <= CRY_PARTICIPANTS)
        identity = atomic_load(&h->participants[owner - 1]);
    if (identity == 0) return atomic_load(&s->word) == word ? -1 : 1;
    if (alive(q, identity)) return 0;
    int claimed = state_of(word) == CLAIMED;
    move_on(claimed ? &h->rings[r].tail : &h->rings[r].head, position);
    if (swap(&s->word, word, word_of(position + q->capacity, FREE, 0)))
        atomic_fetch_add(claimed ? &h->skipped : &h->lost, 1);
    wake(&h->filled, 0);
    wake(&h->freed, 0);
    return 1;
}

/* Takes back all slots of participant `owner`, who is dead (0: of nobody); checks every word. */
static cry_queue_status sweep(cry_queue *q, uint64_t owner)
{
    for (int r = 0; r < CRY_PRIORITIES; r++)
        for (uint64_t i = 0; i < q->capacity; i++) {
            uint64_t word = atomic_load(&slot_at(q, r, i)->word);
            if ((position_of(word) & (q->capacity - 1)) != i) return CRY_QUEUE_CORRUPT;
            int held = state_of(word) == CLAIMED || state_of(word) == READING;
            if (owner && held && owner_of(word) == owner) cry_queue_reap(q, r, word);
        }
    return CRY_QUEUE_OK;
}

cry_queue_status cry_queue_enter(cry_queue *q)
{
    unsigned generation = atomic_load(&cry_fork_generation);
    int64_t pid = getpid();
    uint64_t start = cry_process_start(pid), identity = start << PID_BITS | (uint64_t)pid;
    if (start == 0 || start == CRY_START_UNKNOWN) return CRY_QUEUE_NO_PROC;
    atomic_store(&q->identity, identity);
    for (int pass = 0; pass < 3; pass++) /* its own entry, a free one, one of a dead process */
        for (uint64_t i = 0; i < CRY_PARTICIPANTS; i++) {
            _Atomic uint64_t *entry = &q->shared->participants[i];
            uint64_t seen = atomic_load(entry);
            if (pass == 0 && seen != identity) continue;
            if (pass == 1 && seen != 0) continue;
            if (pass == 2 && (alive(q, seen) || sweep(q, i + 1) != CRY_QUEUE_OK)) continue;
            if (!swap(entry, seen, identity)) continue;
            atomic_store(&q->joined, (uint64_t)generation << 32 | (i + 1));
            return CRY_QUEUE_OK;
        }
    return CRY_QUEUE_CROWDED;
}

/* FNV-1a over the fields that never change. */
static uint64_t checksum(const header *h)
{
    const unsigned char *bytes = (const unsigned char *)h;
    uint64_t sum = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < offsetof(header, checksum); i++)
        sum = (sum ^ bytes[i]) * UINT64_C(1099511628211);
    return sum;
}

int64_t cry_queue_bytes(int64_t capacity)
{
    if (capacity < 2 || capacity > CRY_QUEUE_CAPACITY || (capacity & (capacity - 1))) return 0;
    return (int64_t)sizeof(header) + CRY_PRIORITIES * capacity * (int64_t)sizeof(slot);
}

cry_queue_status cry_queue_init(void *memory, int64_t bytes, int64_t capacity)
{
    int64_t needed = cry_queue_bytes(capacity);
    if (!needed || bytes < needed || (uintptr_t)memory % 64) return CRY_QUEUE_BAD_ARGUMENT;
    header *h = memory;
    slot *slots = (slot *)(h + 1);
    memset(memory, 0, (size_t)needed);
    for (int64_t i = 0; i < CRY_PRIORITIES * capacity; i++)
        atomic_store_explicit(&slots[i].word, word_of((uint64_t)(i & (capacity - 1)), FREE, 0),
                              memory_order_relaxed);
    h->magic = MAGIC;
    h->version = VERSION;
    h->slot_bytes = sizeof(slot);
    h->capacity = capacity;
    h->bytes = needed;
    h->checksum = checksum(h);
    return CRY_QUEUE_OK;
}

cry_queue_status cry_queue_join(cry_queue **queue, void *memory, int64_t bytes, int shared)
{
    header *h = memory;
    *queue = 0;
    if ((uintptr_t)memory % 64) return CRY_QUEUE_BAD_ARGUMENT;
    if (bytes < (int64_t)sizeof(header) || h->magic != MAGIC || h->version != VERSION ||
        h->slot_bytes != sizeof(slot) || h->checksum != checksum(h) || h->bytes > bytes ||
        h->bytes != cry_queue_bytes(h->capacity))
        return CRY_QUEUE_CORRUPT;
    cry_queue *q = calloc(1, sizeof *q);
    if (!q) return CRY_QUEUE_NO_MEMORY;
    q->shared = h;
    q->slots = (slot *)(h + 1);
    q->capacity = (uint64_t)h->capacity;
    q->others = shared;
    cry_watch_forks();
    cry_queue_status status = sweep(q, 0);
    if (status == CRY_QUEUE_OK) status = cry_queue_enter(q);
    if (status == CRY_QUEUE_OK) *queue = q;
    else free(q);
    return status;
}

void cry_queue_free(cry_queue *queue) { free(queue); }

int cry_queue_closed(const cry_queue *q) { return atomic_load(&q->shared->closed) != 0; }

int64_t cry_queue_capacity(const cry_queue *q) { return (int64_t)q->capacity; }

/* Positions from head to tail at which there will be no message: their claims were taken back. */
static int64_t gaps(const cry_queue *q, int r, uint64_t head, uint64_t tail)
{
    int64_t count = 0;
    for (uint64_t p = head; p < tail && p - head < q->capacity; p++)
        count += ((position_of(atomic_load(&slot_at(q, r, p)->word)) - p) & CRY_POSITIONS) ==
                 q->capacity;
    return count;
}

cry_queue_counters cry_queue_count(const cry_queue *q)
{
    header *h = q->shared;
    cry_queue_counters c = {.dropped = atomic_load(&h->dropped),
                            .skipped = atomic_load(&h->skipped),
                            .lost = atomic_load(&h->lost)};
    int64_t none = (int64_t)(c.skipped + atomic_load(&h->withdrawn));
    int64_t sent = -none, received = -none - (int64_t)c.lost;
    for (int r = 0; r < CRY_PRIORITIES; r++) {
        uint64_t head = atomic_load(&h->rings[r].head), tail = atomic_load(&h->rings[r].tail);
        int64_t ahead = gaps(q, r, head, tail), depth = (int64_t)(tail - head) - ahead;
        c.depth[r] = depth > 0 ? depth : 0;
        sent += (int64_t)tail;
        received += (int64_t)head + ahead;
    }
    c.sent = sent > 0 ? (uint64_t)sent : 0;
    c.received = received > 0 ? (uint64_t)received : 0;
    return c;
}
