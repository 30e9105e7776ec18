/* What this machine can do at most: multiply-adds, and bytes moved, by any program.
 *
 *     peak KIND THREADS SECONDS [BYTES]     prints one number, 10^9 a second
 *
 * fma512, fma256, bf16   floating-point operations: vfmadd231ps on 16 and 8 lanes, vdpbf16ps
 * read, copy, triad      bytes read and written over BYTES in all: sum a; b = a; c = a + s b
 *
 * The best of many short samples counts, since a limit is what is asked: whoever disturbs a sample
 * only lowers it.  Accumulators are named registers, 12 and 24 of them, and the better count
 * counts: with 12, vdpbf16ps waits for itself; with 24, nothing does.  Copy and triad are tried
 * with plain stores and with stores past the caches, as the C library's memcpy does. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_THREADS = 1024, UNROLL = 8 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- Multiply-adds: n rounds over 12 or 24 accumulators. */

#define A(op, r, i) op " %%" r "30, %%" r "31, %%" r #i "\n\t"
#define A6(op, r, a, b, c, d, e, f) \
    A(op, r, a) A(op, r, b) A(op, r, c) A(op, r, d) A(op, r, e) A(op, r, f)
#define A12(op, r) A6(op, r, 0, 1, 2, 3, 4, 5) A6(op, r, 6, 7, 8, 9, 10, 11)
#define A24(op, r) A12(op, r) A6(op, r, 12, 13, 14, 15, 16, 17) A6(op, r, 18, 19, 20, 21, 22, 23)
#define B(i) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #i "\n\t"
#define B12 B(0) B(1) B(2) B(3) B(4) B(5) B(6) B(7) B(8) B(9) B(10) B(11)
#define LOOP(body) "1:\n\t" body "dec %0\n\tjnz 1b\n\t"
#define REGISTERS_256 "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", \
    "ymm9", "ymm10", "ymm11", "ymm12", "ymm13", "ymm14", "ymm15", "cc"
#define REGISTERS_512 "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", \
    "zmm30", "zmm31", REGISTERS_256

static const uint32_t half = 0x3f003f00;  /* 0.5 as float, and twice 0.5 as bf16 */

#if defined(__AVX512F__)
#define ROUNDS_512(name, op, many)                                                   \
    static void name(int64_t n)                                                      \
    {                                                                                \
        __asm__ volatile("vbroadcastss %1, %%zmm30\n\tvbroadcastss %1, %%zmm31\n\t"  \
                         LOOP(many(op, "zmm")) : "+r"(n) : "m"(half) : REGISTERS_512); \
    }
ROUNDS_512(fma512_12, "vfmadd231ps", A12)
ROUNDS_512(fma512_24, "vfmadd231ps", A24)
#if defined(__AVX512BF16__)
ROUNDS_512(bf16_12, "vdpbf16ps", A12)
ROUNDS_512(bf16_24, "vdpbf16ps", A24)
#endif
#endif

#if defined(__FMA__)
static void fma256_12(int64_t n)
{
    __asm__ volatile("vbroadcastss %1, %%ymm14\n\tvbroadcastss %1, %%ymm15\n\t" LOOP(B12)
                     : "+r"(n) : "m"(half) : REGISTERS_256);
}
#endif

/* --- Bytes moved: n floats, a multiple of UNROLL vectors. */

#if defined(__AVX512F__)
typedef __m512 vec;
#define LANES 16
#define LOAD _mm512_load_ps
#define STORE _mm512_store_ps
#define STREAM _mm512_stream_ps
#define ADD _mm512_add_ps
#define MUL _mm512_mul_ps
#define ALL _mm512_set1_ps
#elif defined(__AVX__)
typedef __m256 vec;
#define LANES 8
#define LOAD _mm256_load_ps
#define STORE _mm256_store_ps
#define STREAM _mm256_stream_ps
#define ADD _mm256_add_ps
#define MUL _mm256_mul_ps
#define ALL _mm256_set1_ps
#else
typedef __m128 vec;
#define LANES 4
#define LOAD _mm_load_ps
#define STORE _mm_store_ps
#define STREAM _mm_stream_ps
#define ADD _mm_add_ps
#define MUL _mm_mul_ps
#define ALL _mm_set1_ps
#endif

static void pass_read(float *c, const float *a, const float *b, int64_t n)
{
    (void)b;
    vec s[UNROLL];
    for (int j = 0; j < UNROLL; j++)
        s[j] = ALL(0.0f);
    for (int64_t i = 0; i < n; i += UNROLL * LANES)
        for (int j = 0; j < UNROLL; j++)
            s[j] = ADD(s[j], LOAD(a + i + j * LANES));
    for (int j = 1; j < UNROLL; j++)
        s[0] = ADD(s[0], s[j]);
    STORE(c, s[0]);  /* c is one vector that nobody reads: so the sum is not left out */
}

#define PASSES(copy, triad, store)                                                  \
    static void copy(float *c, const float *a, const float *b, int64_t n)           \
    {                                                                               \
        (void)b;                                                                    \
        for (int64_t i = 0; i < n; i += UNROLL * LANES)                             \
            for (int j = 0; j < UNROLL; j++)                                        \
                store(c + i + j * LANES, LOAD(a + i + j * LANES));                  \
        _mm_sfence();                                                               \
    }                                                                               \
    static void triad(float *c, const float *a, const float *b, int64_t n)          \
    {                                                                               \
        const vec s = ALL(3.0f);                                                    \
        for (int64_t i = 0; i < n; i += UNROLL * LANES)                             \
            for (int j = 0; j < UNROLL; j++)                                        \
                store(c + i + j * LANES,                                            \
                      ADD(LOAD(a + i + j * LANES), MUL(s, LOAD(b + i + j * LANES)))); \
        _mm_sfence();                                                               \
    }
PASSES(pass_copy, pass_triad, STORE)
PASSES(pass_copy_past, pass_triad_past, STREAM)

/* --- Who does it how often. */

typedef struct {
    const char *kind;
    void (*rounds)(int64_t n);                                         /* either this */
    void (*pass)(float *c, const float *a, const float *b, int64_t n); /* or that */
    int amount; /* operations in a round, or arrays that a pass goes over */
} way;

static const way ways[] = {
#if defined(__AVX512F__)
    {"fma512", fma512_12, NULL, 12 * 32},
    {"fma512", fma512_24, NULL, 24 * 32},
#endif
#if defined(__AVX512BF16__)
    {"bf16", bf16_12, NULL, 12 * 64},
    {"bf16", bf16_24, NULL, 24 * 64},
#endif
#if defined(__FMA__)
    {"fma256", fma256_12, NULL, 12 * 16},
#endif
    {"read", NULL, pass_read, 1},
    {"copy", NULL, pass_copy, 2},
    {"copy", NULL, pass_copy_past, 2},
    {"triad", NULL, pass_triad, 3},
    {"triad", NULL, pass_triad_past, 3},
};

typedef struct {
    const way *w;
    atomic_int *absent; /* threads that do not run yet */
    float *c, *a, *b;
    int64_t floats, times; /* of each array; passes or rounds of a sample */
    int cpu;
    double begun, ended;
} worker;

static void stay_on(int which)
{
    cpu_set_t may, one;
    if (sched_getaffinity(0, sizeof may, &may) || !CPU_COUNT(&may))
        return;
    which %= CPU_COUNT(&may);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET((size_t)cpu, &may) && which-- == 0) {
            CPU_ZERO(&one);
            CPU_SET((size_t)cpu, &one);
            (void)pthread_setaffinity_np(pthread_self(), sizeof one, &one);
        }
}

static void *work(void *argument)
{
    worker *me = argument;
    stay_on(me->cpu);
    if (me->w->pass && !me->a) { /* first touched by the thread that uses it */
        float **arrays[] = {&me->a, &me->b, &me->c};
        const int used = me->w->amount; /* read: a; copy: a and c; triad: all */
        for (int i = 0; i < 3; i++) {
            const int64_t floats = i == 0 || (i == 1 ? used == 3 : used > 1) ? me->floats : LANES;
            *arrays[i] = aligned_alloc(4096, ((size_t)floats * 4 + 4095) / 4096 * 4096);
            if (!*arrays[i])
                exit(3);
            for (int64_t k = 0; k < floats; k++)
                (*arrays[i])[k] = 1.0f;
        }
    }
    /* Spinning: a thread that sleeps until all are there may be woken only when another one is done. */
    atomic_fetch_sub(me->absent, 1);
    while (atomic_load(me->absent) > 0)
        ;
    me->begun = now();
    if (me->w->rounds)
        me->w->rounds(me->times);
    else
        for (int64_t k = 0; k < me->times; k++)
            me->w->pass(me->c, me->a, me->b, me->floats);
    me->ended = now();
    return NULL;
}

/* Seconds from the first thread's begin to the last one's end. */
static double sample(worker *team, int threads, int64_t times)
{
    pthread_t ids[MOST_THREADS];
    atomic_int absent = threads;
    for (int i = 0; i < threads; i++) {
        team[i].absent = &absent, team[i].times = times;
        if (pthread_create(&ids[i], NULL, work, &team[i]))
            exit(3);
    }
    double first = 0, last = 0;
    for (int i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        first = i && first < team[i].begun ? first : team[i].begun;
        last = i && last > team[i].ended ? last : team[i].ended;
    }
    return last - first;
}

/* 10^9 operations or bytes a second, the best sample within `seconds`. */
static double best(const way *w, int threads, double seconds, int64_t bytes)
{
    static worker team[MOST_THREADS];
    const int64_t step = UNROLL * LANES;
    int64_t floats = w->pass ? bytes / 4 / w->amount / threads / step * step : 0;
    floats = floats > step || !w->pass ? floats : step;
    for (int i = 0; i < threads; i++)
        team[i] = (worker){.w = w, .floats = floats, .cpu = i};
    int64_t times = w->pass ? 1 : 10000;
    double spent = sample(team, threads, times);
    while ((spent = sample(team, threads, times)) < 5e-3) /* long beside starting a thread */
        times *= 2;
    const double amount = w->pass ? 4.0 * (double)floats * w->amount : w->amount;
    double most = 0;
    for (double end = now() + seconds; now() < end || most == 0;) {
        const double rate = 1e-9 * amount * (double)times * threads / sample(team, threads, times);
        most = rate > most ? rate : most;
    }
    for (int i = 0; i < threads; i++)
        free(team[i].a), free(team[i].b), free(team[i].c);
    return most;
}

int main(int argc, char **argv)
{
    const int threads = argc > 3 ? atoi(argv[2]) : 0;
    const double seconds = argc > 3 ? atof(argv[3]) : 0;
    const int64_t bytes = argc > 4 ? atoll(argv[4]) : 0;
    if (threads < 1 || threads > MOST_THREADS) {
        fprintf(stderr, "usage: peak KIND THREADS SECONDS [BYTES], 1 to 1024 threads\n");
        return 2;
    }
    int n = 0;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        n += !strcmp(ways[i].kind, argv[1]);
    double most = 0;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (!strcmp(ways[i].kind, argv[1])) {
            const double rate = best(&ways[i], threads, seconds / n, bytes);
            most = rate > most ? rate : most;
        }
    printf("%.6g\n", most);  /* 0: not on this CPU */
    return 0;
}
