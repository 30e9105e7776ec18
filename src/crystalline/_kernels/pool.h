/* Inside the pool: what parallel.c runs with and arrange.c sets up. */
#ifndef CRY_POOL_H
#define CRY_POOL_H

#include <pthread.h>

#include "tasks.h"

/* A leaf's counter: the region it counts for, above the number of its tasks that are taken.  Of an
 * older region it means none, so that no region has to set all leaves back. */
enum { TAKEN_BITS = 24 };
#define TAKEN_MASK ((UINT64_C(1) << TAKEN_BITS) - 1)
#define REGION_MASK (UINT64_MAX >> TAKEN_BITS)

enum { SPHERE_PARTS = CRY_PARTS / CRY_GROUPS };

typedef struct leaf {
    _Alignas(64) atomic_ullong counter;
    atomic_llong busy; /* nanoseconds spent on its tasks, by whomever */
    int sphere;
    int begin, end;    /* parts of the sphere's SPHERE_PARTS */
    int owner;         /* thread */
} leaf;

typedef struct counts { /* relaxed: each is added to on its own and read on its own */
    _Alignas(64) atomic_llong tasks, stolen, busy;
} counts;

struct cry_pool {
    atomic_uint region;   /* counts regions; workers sleep on it.  Written before the gate opens */
    atomic_uint gate;     /* opened with release: pairs with the acquire of a worker's entry */
    atomic_uint arrived;  /* workers that are through with the region; looked at without stealing */
    atomic_int sleepers;  /* workers that may be asleep on region */
    atomic_int waiting;   /* the caller may be asleep on gate or arrived */
    atomic_int stop;
    cry_task *task;       /* from here to limit: written while the gate is shut and nobody is inside */
    void *context;
    int64_t tasks;
    uint64_t number;      /* of this region, among 2^40 */
    int stealing;
    int limit;            /* thread numbers below it may take tasks: the team's scratch ends there */
    int threads, workers; /* asked for; running */
    int64_t spin;
    unsigned generation;  /* of forks, when the workers were started */
    pthread_t *handles;
    int *cpus;            /* where workers stay, or NULL */
    int leaf_count, steal;
    int turn[CRY_GROUPS]; /* the order in which spheres get the tasks that twelve do not divide */
    leaf *leaves;
    int32_t *order;       /* (threads, leaves): a thread's own first, then the nearest others */
    counts spheres[CRY_GROUPS], *by_thread;
    atomic_llong regions, inside; /* how many; nanoseconds between their beginnings and ends */
};

int cry_arrange_simply(cry_pool *pool);

#endif
