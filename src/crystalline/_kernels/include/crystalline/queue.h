/* crystalline: a bounded queue of small messages, for many senders and many receivers.
 *
 * It lies in memory that the caller gives, of one process or shared between several.  No lock is
 * taken: whoever is stopped or killed between any two instructions holds up nobody for good.
 *
 * Four priorities, 0 the most urgent, each a ring of `capacity` slots of 64 bytes.  A slot begins
 * with a word of 64 bits; it is claimed by compare-and-swap, and passed on by its owner:
 *
 *     position (48 bits) | state (2 bits) | participant (14 bits, 0 for none)
 *
 *     FREE(p)      --send-->     CLAIMED(p, who)   the sender writes its message
 *     CLAIMED(p)   --send-->     FULL(p)
 *     FULL(p)      --receive-->  READING(p, who)   the receiver copies the message out
 *     READING(p)   --receive-->  FREE(p + capacity)
 *
 * The tail is the next position to be sent to, the head the next to be received from; both follow
 * the words, moved on by whoever finds them behind.  Since the claim names its owner in the same
 * instruction, what a killed process leaves is known to be its: CLAIMED is skipped by the receiver
 * that comes upon it, READING is taken back by the sender that laps onto it, and both are counted.
 * What a living process has claimed is waited for, also when that process is stopped.
 *
 * Guarantees.  A message whose send returned CRY_QUEUE_OK is received at most once, and exactly
 * once unless its receiver dies while copying it out.  Messages of one thread and one priority are
 * received in the order sent.  Whoever waits looks at the state at least every 100 ms: a lost
 * wake-up, or a death, costs that long at most.
 *
 * Processes are told apart by number and start time, as /proc shows them: all must live in one PID
 * namespace.  One that replaces itself by exec while another of its threads is inside a call counts
 * as alive. */
#ifndef CRYSTALLINE_QUEUE_H
#define CRYSTALLINE_QUEUE_H

#include <stdint.h>

#include "crystalline/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CRY_PRIORITIES = 4,
    CRY_PARTICIPANTS = 64,          /* living processes that may use one queue at a time */
    CRY_QUEUE_CAPACITY = 1 << 24,   /* the most slots a priority may have */
};

typedef enum cry_queue_status {
    CRY_QUEUE_OK = 0,
    CRY_QUEUE_FULL,       /* no room within the time given */
    CRY_QUEUE_EMPTY,      /* no message within the time given */
    CRY_QUEUE_CLOSED,     /* for a receiver: and nothing is left */
    CRY_QUEUE_ALONE,      /* every other process that joined is dead: waiting would never end */
    CRY_QUEUE_CORRUPT,    /* the memory is not a queue, or was written to by something else */
    CRY_QUEUE_CROWDED,    /* CRY_PARTICIPANTS living processes have joined already */
    CRY_QUEUE_NO_PROC,    /* /proc does not tell when this process was started */
    CRY_QUEUE_NO_MEMORY,
    CRY_QUEUE_BAD_ARGUMENT, /* capacity, priority, alignment or size */
} cry_queue_status;

typedef struct cry_message {
    uint16_t type;
    uint8_t priority; /* 0, the most urgent, to 3 */
    uint8_t flags;
    int32_t sphere;
    int64_t ticket;
    int64_t step;
    double values[4];
} cry_message;

typedef struct cry_queue_counters {
    uint64_t sent;     /* messages for which a send returned CRY_QUEUE_OK */
    uint64_t received; /* messages taken out; with those that a dead receiver had begun to take */
    uint64_t dropped;  /* messages for which cry_queue_send returned CRY_QUEUE_FULL */
    uint64_t skipped;  /* slots of senders that died while writing */
    uint64_t lost;     /* messages of receivers that died while reading; not in received */
    int64_t depth[CRY_PRIORITIES];
} cry_queue_counters;

/* One process's way to a queue; any number of its threads may use it at once, and the children it
 * forks may as well. */
typedef struct cry_queue cry_queue;

/* Bytes of a queue with `capacity` slots a priority, a power of two from 2 on; 0 for another. */
CRY_API int64_t cry_queue_bytes(int64_t capacity);
/* Makes an empty queue in `memory`, 64-byte aligned, that nobody uses. */
CRY_API cry_queue_status cry_queue_init(void *memory, int64_t bytes, int64_t capacity);
/* Joins the queue in `memory`, after checking its head and every slot word.  `shared` tells whether
 * other processes see this memory; in private memory a fork's child has a copy of its own. */
CRY_API cry_queue_status cry_queue_join(cry_queue **queue, void *memory, int64_t bytes, int shared);
/* Gives the handle back.  The process stays known as a participant until it ends. */
CRY_API void cry_queue_free(cry_queue *queue);

/* Sends a copy of the message, or receives one from the most urgent priority that has any.  Waits
 * up to `nanoseconds` for room or a message; 0 does not wait, a negative number waits for ever.
 * cry_queue_offer is a send that counts nothing as dropped, for callers that will come again. */
CRY_API cry_queue_status cry_queue_send(cry_queue *queue, const cry_message *message,
                                        int64_t nanoseconds);
CRY_API cry_queue_status cry_queue_offer(cry_queue *queue, const cry_message *message,
                                         int64_t nanoseconds);
CRY_API cry_queue_status cry_queue_receive(cry_queue *queue, cry_message *message,
                                           int64_t nanoseconds);
/* Closes the queue for good and wakes all who wait.  Sends fail from now on; what is inside can
 * still be received. */
CRY_API void cry_queue_close(cry_queue *queue);

CRY_API int cry_queue_closed(const cry_queue *queue);
CRY_API int64_t cry_queue_capacity(const cry_queue *queue);
/* Counts agree with each other when nobody is inside a call; those of a process killed between an
 * act and its count are missing. */
CRY_API cry_queue_counters cry_queue_count(const cry_queue *queue);

#ifdef __cplusplus
}
#endif
#endif
