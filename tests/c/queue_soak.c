/* queue_soak PRODUCERS CONSUMERS MESSAGES [CAPACITY [pin]]: threads send and receive that many messages,
 * and every one is accounted for; with `pin` senders stay on CPU 0 and receivers on CPU 1.  Prints
 * one line of JSON; exit code 1 when anything is wrong.
 *
 * Per producer each consumer sees rising tickets (order), and over all consumers count, sum and sum
 * of mixed tickets are those of 0 .. n - 1 (no loss, no duplicate). */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "crystalline/queue.h"
#include "system.h"

enum { MOST = 64 };

typedef struct account {
    int64_t count, last;
    uint64_t sum, mixed;
} account;

typedef struct worker {
    pthread_t thread;
    int number;
    int64_t messages, wrong;
    account seen[MOST];
} worker;

static cry_queue *queue;
static int pinned;
static worker producers[MOST], consumers[MOST];

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static void enter_one(account *a, int64_t ticket)
{
    a->count++;
    a->sum += (uint64_t)ticket;
    a->mixed += mix((uint64_t)ticket);
}

static void *produce(void *argument)
{
    worker *w = argument;
    if (pinned && !cry_pin(0)) w->wrong++;
    for (int64_t i = 0; i < w->messages; i++) {
        cry_message m = {.type = 7, .priority = (uint8_t)(w->number % CRY_PRIORITIES),
                         .sphere = w->number, .ticket = i, .step = -i,
                         .values = {(double)i, 0, 0, (double)w->number}};
        if (cry_queue_send(queue, &m, -1) != CRY_QUEUE_OK) w->wrong++;
    }
    return 0;
}

static void *consume(void *argument)
{
    worker *w = argument;
    cry_message m;
    cry_queue_status status;
    if (pinned && !cry_pin(1)) w->wrong++;
    while ((status = cry_queue_receive(queue, &m, -1)) == CRY_QUEUE_OK) {
        int whole = m.sphere >= 0 && m.sphere < MOST && m.type == 7 && m.step == -m.ticket &&
                    m.values[0] == (double)m.ticket && m.values[3] == (double)m.sphere;
        account *a = &w->seen[whole ? m.sphere : 0];
        if (!whole || (a->count && m.ticket <= a->last)) w->wrong++;
        a->last = m.ticket;
        enter_one(a, m.ticket);
    }
    if (status != CRY_QUEUE_CLOSED) w->wrong++;
    return 0;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Messages that are missing, doubled or wrong. */
static int64_t differences(int p, int c)
{
    int64_t wrong = 0;
    for (int i = 0; i < p; i++) {
        account sent = {0}, got = {0};
        for (int64_t k = 0; k < producers[i].messages; k++) enter_one(&sent, k);
        for (int j = 0; j < c; j++) {
            got.count += consumers[j].seen[i].count;
            got.sum += consumers[j].seen[i].sum;
            got.mixed += consumers[j].seen[i].mixed;
        }
        wrong += producers[i].wrong + llabs(sent.count - got.count);
        wrong += sent.sum != got.sum || sent.mixed != got.mixed;
    }
    for (int j = 0; j < c; j++) wrong += consumers[j].wrong;
    cry_queue_counters n = cry_queue_count(queue);
    return wrong + (n.sent != n.received) + (n.skipped || n.lost || n.dropped);
}

int main(int argc, char **argv)
{
    int p = argc > 3 ? atoi(argv[1]) : 0, c = argc > 3 ? atoi(argv[2]) : 0;
    int64_t messages = argc > 3 ? atoll(argv[3]) : 0, capacity = argc > 4 ? atoll(argv[4]) : 1024;
    int64_t bytes = cry_queue_bytes(capacity);
    pinned = argc > 5;
    if (p < 1 || c < 1 || p > MOST || c > MOST || messages < 1 || !bytes) {
        fprintf(stderr, "usage: queue_soak PRODUCERS CONSUMERS MESSAGES [CAPACITY [pin]]\n");
        return 2;
    }
    void *memory = aligned_alloc(64, (size_t)bytes);
    if (!memory || cry_queue_init(memory, bytes, capacity) != CRY_QUEUE_OK ||
        cry_queue_join(&queue, memory, bytes, 0) != CRY_QUEUE_OK)
        return 2;
    double begun = now();
    for (int j = 0; j < c; j++) pthread_create(&consumers[j].thread, 0, consume, &consumers[j]);
    for (int i = 0; i < p; i++) {
        producers[i].number = i;
        producers[i].messages = messages / p + (i < messages % p);
        pthread_create(&producers[i].thread, 0, produce, &producers[i]);
    }
    for (int i = 0; i < p; i++) pthread_join(producers[i].thread, 0);
    cry_queue_close(queue);
    for (int j = 0; j < c; j++) pthread_join(consumers[j].thread, 0);
    double seconds = now() - begun;
    int64_t wrong = differences(p, c);
    printf("{\"producers\": %d, \"consumers\": %d, \"messages\": %lld, \"capacity\": %lld, "
           "\"wrong\": %lld, \"per_second\": %.0f}\n",
           p, c, (long long)messages, (long long)capacity, (long long)wrong,
           (double)messages / seconds);
    cry_queue_free(queue);
    free(memory);
    return wrong != 0;
}
