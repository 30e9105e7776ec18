/* Who takes which tasks first: the leaves of the spheres, their threads, and the counters. */
#include <stdlib.h>
#include <string.h>

#include "pool.h"

/* Whether leaves tile the parts without crossing a sphere's bounds, and orders are complete. */
static int arrangement_ok(const cry_pool *pool, const cry_arrangement *a)
{
    if (a->leaves < CRY_GROUPS || a->leaves > CRY_PARTS) return 0;
    if (a->begin[0] != 0 || a->begin[a->leaves] != CRY_PARTS) return 0;
    for (int l = 0; l < a->leaves; l++) {
        if (a->begin[l + 1] <= a->begin[l] || a->begin[l + 1] > CRY_PARTS) return 0;
        if (a->begin[l] / SPHERE_PARTS != (a->begin[l + 1] - 1) / SPHERE_PARTS) return 0;
        if (a->owner[l] < 0 || a->owner[l] >= pool->threads) return 0;
    }
    for (int t = 0; t < pool->threads; t++) {
        const int32_t *order = a->order + (int64_t)t * a->leaves;
        unsigned char met[CRY_PARTS] = {0};
        int others = 0;
        for (int i = 0; i < a->leaves; i++) {
            if (order[i] < 0 || order[i] >= a->leaves || met[order[i]]++) return 0;
            if (a->owner[order[i]] != t) others = 1;
            else if (others) return 0; /* its own come first */
        }
    }
    return 1;
}

/* First one sphere of each thread, then a second one of each, ...: what is over goes round. */
static void set_turns(cry_pool *pool)
{
    int owner[CRY_GROUPS], round[CRY_GROUPS] = {0};
    for (int l = pool->leaf_count - 1; l >= 0; l--)
        owner[pool->leaves[l].sphere] = pool->leaves[l].owner; /* its first leaf's stays */
    for (int g = 0; g < CRY_GROUPS; g++)
        for (int before = 0; before < g; before++) round[g] += owner[before] == owner[g];
    for (int g = 0; g < CRY_GROUPS; g++) {
        pool->turn[g] = 0;
        for (int h = 0; h < CRY_GROUPS; h++)
            pool->turn[g] += round[h] < round[g] || (round[h] == round[g] && owner[h] < owner[g]);
    }
}

cry_status cry_pool_arrange(cry_pool *pool, const cry_arrangement *a)
{
    if (!arrangement_ok(pool, a)) return CRY_BAD_SHAPE;
    size_t n = (size_t)a->leaves, orders = n * (size_t)pool->threads * sizeof *pool->order;
    leaf *leaves = aligned_alloc(64, n * sizeof *leaves);
    int32_t *order = malloc(orders);
    if (!leaves || !order) {
        free(leaves);
        free(order);
        return CRY_NO_SCRATCH;
    }
    memset(leaves, 0, n * sizeof *leaves);
    for (int l = 0; l < a->leaves; l++) {
        leaves[l].sphere = a->begin[l] / SPHERE_PARTS;
        leaves[l].begin = a->begin[l] - leaves[l].sphere * SPHERE_PARTS;
        leaves[l].end = a->begin[l + 1] - leaves[l].sphere * SPHERE_PARTS;
        leaves[l].owner = a->owner[l];
    }
    memcpy(order, a->order, orders);
    free(pool->leaves);
    free(pool->order);
    pool->leaves = leaves;
    pool->order = order;
    pool->leaf_count = a->leaves;
    pool->steal = a->steal;
    set_turns(pool);
    return CRY_OK;
}

static int64_t look(const atomic_llong *at) { return atomic_load_explicit(at, memory_order_relaxed); }

static cry_counts counted(const counts *c)
{
    return (cry_counts){look(&c->tasks), look(&c->stolen), look(&c->busy)};
}

void cry_pool_statistics(const cry_pool *pool, cry_statistics *to)
{
    to->regions = look(&pool->regions);
    to->inside = look(&pool->inside);
    for (int g = 0; g < CRY_GROUPS; g++) to->spheres[g] = counted(pool->spheres + g);
    for (int t = 0; t < pool->threads; t++) to->threads[t] = counted(pool->by_thread + t);
    for (int l = 0; l < pool->leaf_count; l++) to->leaf_busy[l] = look(&pool->leaves[l].busy);
}

/* Twelve leaves, one a sphere, thread t carrying spheres t, t + N, ...; others are robbed from behind. */
int cry_arrange_simply(cry_pool *pool)
{
    int n = pool->threads;
    int32_t begin[CRY_GROUPS + 1], owner[CRY_GROUPS];
    int32_t *order = calloc((size_t)n * CRY_GROUPS, sizeof *order);
    if (!order) return 0;
    for (int g = 0; g <= CRY_GROUPS; g++) begin[g] = g * SPHERE_PARTS;
    for (int g = 0; g < CRY_GROUPS; g++) owner[g] = g % n;
    for (int t = 0; t < n; t++) {
        int32_t *at = order + t * CRY_GROUPS;
        for (int g = 0; g < CRY_GROUPS; g++)
            if (owner[g] == t) *at++ = g;
        for (int g = CRY_GROUPS - 1; g >= 0; g--)
            if (owner[g] != t) *at++ = g;
    }
    cry_arrangement simple = {CRY_GROUPS, begin, owner, order, 1};
    cry_status status = cry_pool_arrange(pool, &simple);
    free(order);
    return status == CRY_OK;
}
