/* queue_stuck FILE STEP [PRIORITY]: joins the queue in a file that is shared memory, does the first
 * part of a send or a receive by hand, of priority 1 or the one given, says so, and stops for good,
 * to be killed there.  STEP is
 *     claim    the slot is claimed, nothing else
 *     half     and half the message is written
 *     sent     the message is there, the tail not yet moved
 *     read     the message is claimed for reading, nothing else
 *     taken    the slot is free again, the head not yet moved
 *
 * queue_stuck fork: in a child's copy of a private queue a claim of the parent's threads does not
 * hold anything up. */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "queue_layout.h"

enum { RING = 1 };

static void by_hand(cry_queue *q, const char *step, int r)
{
    int reads = !strcmp(step, "read") || !strcmp(step, "taken");
    ring *ends = &q->shared->rings[r];
    uint64_t at = reads ? ends->head : ends->tail, me = q->joined & 0x3fff;
    slot *s = slot_at(q, r, at);
    if (!swap(&s->word, word_of(at, reads ? FULL : FREE, 0),
              word_of(at, reads ? READING : CLAIMED, me)))
        exit(3);
    if (!strcmp(step, "half") || !strcmp(step, "sent")) s->message.ticket = 77;
    if (!strcmp(step, "sent")) s->word = word_of(at, FULL, 0);
    if (!strcmp(step, "taken")) s->word = word_of(at + q->capacity, FREE, 0);
}

static int in_a_fork(void)
{
    int64_t bytes = cry_queue_bytes(2);
    void *memory = aligned_alloc(64, (size_t)bytes);
    cry_queue *q;
    if (!memory || cry_queue_init(memory, bytes, 2) != CRY_QUEUE_OK ||
        cry_queue_join(&q, memory, bytes, 0) != CRY_QUEUE_OK)
        return 2;
    by_hand(q, "claim", RING);
    pid_t child = fork();
    if (child == 0) {
        cry_message sent = {.priority = RING, .ticket = 5}, got;
        alarm(20);
        int well = cry_queue_send(q, &sent, -1) == CRY_QUEUE_OK &&
                   cry_queue_receive(q, &got, -1) == CRY_QUEUE_OK && got.ticket == 5 &&
                   cry_queue_count(q).skipped == 1;
        _exit(!well);
    }
    int status = 1;
    waitpid(child, &status, 0);
    cry_queue_free(q);
    free(memory);
    return status != 0;
}

int main(int argc, char **argv)
{
    struct stat file;
    cry_queue *q;
    if (argc == 2 && !strcmp(argv[1], "fork")) return in_a_fork();
    int f = argc == 3 || argc == 4 ? open(argv[1], O_RDWR) : -1;
    if (f < 0 || fstat(f, &file)) return 2;
    void *memory = mmap(0, (size_t)file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    if (memory == MAP_FAILED || cry_queue_join(&q, memory, file.st_size, 1) != CRY_QUEUE_OK)
        return 2;
    by_hand(q, argv[2], argc == 4 ? argv[3][0] - '0' : RING);
    puts("there");
    fflush(stdout);
    for (;;) pause();
}
