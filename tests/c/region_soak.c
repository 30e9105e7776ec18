/* Writers and readers of one region, as threads: every snapshot is of one write.
 *
 *     region_soak WRITERS READERS WORDS SNAPSHOTS
 *
 * A write fills the payload with one number and one odd byte at the end.  One in sixteen stops in
 * the middle and leaves the region as a process that died there does.  Each reader takes at
 * least that many snapshots, and goes on until there was a write for twenty of them.  The program
 * ends with 0 if all are uniform, no reader's version goes back and no two write at once. */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crystalline/region.h"
#include "system.h"

/* No process: its number is above all that Linux gives out, unless it is set to its very limit. */
#define DEAD ((1ull << 22) + ((1u << 22) - 1))

static cry_region region;
static uint64_t *payload; /* words + 1: the last holds one byte */
static size_t words;
static int snapshots;
static atomic_int reading, writing, failed;

static int64_t soon(void) { return cry_nanoseconds() + 20000000000; }

static void fail(const char *what, uint64_t a, uint64_t b)
{
    fprintf(stderr, "%s: %" PRIu64 ", %" PRIu64 "\n", what, a, b);
    atomic_store(&failed, 1);
}

static void *write_on(void *argument)
{
    uint64_t value = (uint64_t)(uintptr_t)argument, *data = malloc(words * 8 + 8);
    while (data && atomic_load(&reading) && !atomic_load(&failed)) {
        value += 0x100;
        for (size_t i = 0; i <= words; i++) data[i] = value;
        cry_region_status status = cry_region_write_begin(&region, soon());
        if (status != CRY_REGION_OK) {
            fail("write_begin", status, value);
            break;
        }
        /* In two parts, as prefix and weights are. */
        if (atomic_fetch_add(&writing, 1) != 0) fail("two writers", value, 0);
        cry_region_store(payload, 0, data, 8);
        sched_yield(); /* so that others meet a write under way, however few the CPUs */
        int dies = (value >> 8) % 16 == 0;
        if (!dies) cry_region_store(payload, 8, data + 1, words * 8 - 8 + 1);
        atomic_fetch_sub(&writing, 1);
        if (dies) {
            atomic_store(&region.owner, DEAD);
            continue;
        }
        status = cry_region_write_end(&region);
        if (status != CRY_REGION_OK) fail("write_end", status, value);
    }
    free(data);
    return 0;
}

static void judge(const uint64_t *seen, uint64_t version)
{
    for (size_t i = 1; i < words; i++)
        if (seen[i] != seen[0]) {
            fail("torn snapshot", seen[0], seen[i]);
            return;
        }
    if (((const unsigned char *)seen)[words * 8] != (seen[0] & 0xff)) fail("odd byte", seen[0], version);
}

static void *read_on(void *argument)
{
    uint64_t *seen = malloc(words * 8 + 8), version, before = 0;
    (void)argument;
    for (int taken = 0; seen && !atomic_load(&failed);) {
        if (taken >= snapshots && atomic_load(&region.writes) * 20 >= (uint64_t)snapshots) break;
        cry_region_status status = cry_region_read_begin(&region, soon(), &version);
        if (status == CRY_REGION_TORN) continue; /* until a writer takes over */
        if (status != CRY_REGION_OK) {
            fail("read_begin", status, version);
            break;
        }
        cry_region_load(seen, payload, 0, words * 8 + 1);
        if (cry_region_read_end(&region, version) != CRY_REGION_OK) continue;
        if (version < before) fail("version went back", version, before);
        before = version;
        judge(seen, version);
        taken++;
    }
    free(seen);
    atomic_fetch_sub(&reading, 1);
    return 0;
}

int main(int count, char **arguments)
{
    if (count != 5) return 2;
    int writers = atoi(arguments[1]), readers = atoi(arguments[2]), started = 0;
    pthread_t threads[64];
    words = (size_t)atoi(arguments[3]);
    snapshots = atoi(arguments[4]);
    payload = calloc(words + 1, 8);
    if (!payload || words < 1 || writers + readers > 64) return 2;
    cry_region_format(&region, words * 8 + 1);
    if (cry_region_check(&region, words * 8) != CRY_REGION_TRUNCATED) fail("check", words, 0);
    atomic_store(&reading, readers);
    for (uintptr_t i = 0; i < (uintptr_t)(writers + readers); i++)
        if (pthread_create(threads + started, 0, i < (uintptr_t)writers ? write_on : read_on,
                           (void *)i) == 0)
            started++;
    for (int i = 0; i < started; i++) pthread_join(threads[i], 0);
    free(payload);
    printf("%" PRIu64 " writes, %" PRIu64 " reads, %" PRIu64 " retries\n",
           atomic_load(&region.writes), atomic_load(&region.reads), atomic_load(&region.retries));
    return atomic_load(&failed) || started != writers + readers;
}
