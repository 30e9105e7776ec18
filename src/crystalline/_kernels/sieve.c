/* The segmented sieve of sieve.h.
 *
 * A base prime p = 30 a + s strikes p q for q = 30 m + r, s and r among the eight turns.  p q lies
 * in byte  p m + (a r + floor(s r / 30)),  at the bit of  (s r) mod 30.
 *
 *   presieved  p <= 163     patterns, each for two or three primes and as long as their product,
 *                           are laid over the segment
 *   dense      p <= bytes   a cycle m strikes eight bytes.  The cycles that begin before the segment
 *                           or leave it are struck whole, into the memory on both sides, so that
 *                           no branch is left but the loop's own.  The eight offsets are ordered by
 *                           the bit they strike: the masks are constants, the same for every p.
 *   sparse     the others   one multiple at a time
 *
 * State of a dense prime: the byte at which its next cycle begins, counted from p bytes before the
 * segment.  Of a sparse one: (byte of its next multiple, from the segment on) << 6 | place of p in
 * the wheel << 3 | place of q. */
#include "sieve.h"

#include <string.h>

enum { TURNS = 8, PLACES = TURNS * TURNS, PLACE_BITS = 6 };
enum { PATTERNS = 17, PATTERN_ROOM = 84 << 10 };

static const uint8_t TURN[TURNS + 1] = {1, 7, 11, 13, 17, 19, 23, 29, 31};
static const uint8_t PRESIEVED[CRY_SIEVE_PRESIEVED] = {
    7,  11, 13, 17, 19, 23, 29,  31,  37,  41,  43,  47,  53,  59,  61,  67,  71,  73,
    79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163};

typedef struct {
    uint32_t a, c; /* p q is a * (p / 30) + c bytes on */
} offset;

/* Written by cry_sieve_prepare, then only read. */
static struct {
    uint8_t place[CRY_SIEVE_TURN];    /* of a turn: 0 .. 7 */
    uint8_t next[CRY_SIEVE_TURN];     /* place of the first turn not below a rest */
    offset strike[TURNS][TURNS];      /* of p's place and the bit it strikes: from the cycle's begin */
    offset at[PLACES];                /* of the places of p and q: from the cycle's begin */
    offset step[PLACES];              /* the same: to the multiple with the next q */
    uint8_t keep[PLACES];             /* the same: the mask that strikes it */
    uint8_t after[PLACES];            /* the same: with the next q */
    uint8_t *pattern[PATTERNS];
    int64_t length[PATTERNS];
    uint8_t room[PATTERN_ROOM];
} tables;

static void strike_all(uint8_t *pattern, int64_t length, unsigned prime)
{
    for (int64_t n = 0; n < length * TURNS; n++) {
        uint64_t number = (uint64_t)(n / TURNS) * CRY_SIEVE_TURN + TURN[n % TURNS];
        if (number % prime == 0) pattern[n / TURNS] &= (uint8_t) ~(1u << n % TURNS);
    }
}

/* The first three primes share a pattern, of the others the first and the last, and so on: no
 * pattern is long, and together they are 85,151 bytes. */
static void make_patterns(void)
{
    uint8_t *room = tables.room;
    for (int i = 0; i < PATTERNS; i++) {
        const uint8_t *low = i ? PRESIEVED + i + 2 : PRESIEVED + 1;
        const uint8_t *high = i ? PRESIEVED + CRY_SIEVE_PRESIEVED - i : PRESIEVED + 2;
        int64_t length = *low * *high * (i ? 1 : PRESIEVED[0]);
        memset(room, 0xff, (size_t)length);
        strike_all(room, length, *low);
        strike_all(room, length, *high);
        if (!i) strike_all(room, length, PRESIEVED[0]);
        tables.pattern[i] = room;
        tables.length[i] = length;
        room += length;
    }
}

static void make_wheel(void)
{
    for (uint8_t rest = 0, place = 0; rest < CRY_SIEVE_TURN; rest++) {
        if (rest > TURN[place]) place++;
        tables.next[rest] = place;
        if (rest == TURN[place]) tables.place[rest] = place;
    }
    for (unsigned i = 0; i < PLACES; i++) {
        uint32_t s = TURN[i / TURNS], r = TURN[i % TURNS], further = TURN[i % TURNS + 1];
        uint8_t bit = tables.place[s * r % CRY_SIEVE_TURN];
        offset at = {r, s * r / CRY_SIEVE_TURN};
        tables.at[i] = tables.strike[i / TURNS][bit] = at;
        tables.step[i] = (offset){further - r, s * further / CRY_SIEVE_TURN - at.c};
        tables.keep[i] = (uint8_t) ~(1u << bit);
        tables.after[i] = (uint8_t)(i % TURNS == TURNS - 1 ? i - (TURNS - 1) : i + 1);
    }
}

void cry_sieve_prepare(void)
{
    make_patterns();
    make_wheel();
}

/* bits = the patterns, from byte number `begin` on; the first fills, the others are ANDed. */
static void lay_patterns(uint8_t *bits, int64_t bytes, uint64_t begin)
{
    for (int i = 0; i < PATTERNS; i++) {
        int64_t phase = (int64_t)(begin % (uint64_t)tables.length[i]);
        for (int64_t done = 0; done < bytes; phase = 0) {
            int64_t run = tables.length[i] - phase;
            if (run > bytes - done) run = bytes - done;
            const uint8_t *from = tables.pattern[i] + phase;
            uint8_t *to = bits + done;
            if (i)
                for (int64_t k = 0; k < run; k++) to[k] &= from[k];
            else
                memcpy(to, from, (size_t)run);
            done += run;
        }
    }
}

/* 1 is not prime, and the presieved primes are not to be struck themselves. */
static void mend_first(uint8_t *bits, int64_t bytes)
{
    for (int i = 0; i < CRY_SIEVE_PRESIEVED; i++) {
        unsigned p = PRESIEVED[i];
        if (p / CRY_SIEVE_TURN < bytes)
            bits[p / CRY_SIEVE_TURN] |= (uint8_t)(1u << tables.place[p % CRY_SIEVE_TURN]);
    }
    bits[0] &= 0xfe;
}

void cry_sieve_start(cry_sieve *sieve, uint64_t begin)
{
    int64_t low = 0, high = sieve->count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if ((int64_t)sieve->primes[middle] <= sieve->bytes) low = middle + 1;
        else high = middle;
    }
    sieve->dense = low;
    sieve->active = 0;
    sieve->begin = begin - (uint64_t)sieve->bytes;
}

/* State of a prime that begins to strike: at its square, or at the segment. */
static uint32_t first_dense(uint64_t p, uint64_t begin)
{
    uint64_t m = begin / p, root = p / CRY_SIEVE_TURN;
    return (uint32_t)(p * (m < root ? root : m) + p - begin);
}

static uint32_t first_sparse(uint64_t p, uint64_t begin)
{
    uint64_t q = (begin * CRY_SIEVE_TURN + p - 1) / p;
    if (q < p) q = p;
    uint64_t m = q / CRY_SIEVE_TURN;
    uint32_t turn = tables.next[q % CRY_SIEVE_TURN];
    uint32_t place = (uint32_t)tables.place[p % CRY_SIEVE_TURN] * TURNS + turn;
    uint64_t at = p * m + p / CRY_SIEVE_TURN * tables.at[place].a + tables.at[place].c - begin;
    return (uint32_t)(at << PLACE_BITS) | place;
}

static void strike_dense(uint8_t *bits, int64_t bytes, const uint32_t *primes, uint32_t *state,
                         int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t p = primes[i], a = p / CRY_SIEVE_TURN, to[TURNS];
        const offset *strike = tables.strike[tables.place[p % CRY_SIEVE_TURN]];
        for (int b = 0; b < TURNS; b++) to[b] = strike[b].a * a + strike[b].c;
        int64_t at = (int64_t)state[i] - p;
        for (; at < bytes; at += p) {
            uint8_t *cycle = bits + at;
            cycle[to[0]] &= 0xfe;
            cycle[to[1]] &= 0xfd;
            cycle[to[2]] &= 0xfb;
            cycle[to[3]] &= 0xf7;
            cycle[to[4]] &= 0xef;
            cycle[to[5]] &= 0xdf;
            cycle[to[6]] &= 0xbf;
            cycle[to[7]] &= 0x7f;
        }
        /* The last cycle struck leaves the segment: it will be the first of the next one. */
        state[i] = (uint32_t)(at - bytes);
    }
}

static void strike_sparse(uint8_t *bits, int64_t bytes, const uint32_t *primes, uint32_t *state,
                          int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t at = state[i] >> PLACE_BITS, place = state[i] % PLACES;
        uint32_t a = primes[i] / CRY_SIEVE_TURN;
        while (at < bytes) {
            bits[at] &= tables.keep[place];
            at += a * tables.step[place].a + tables.step[place].c;
            place = tables.after[place];
        }
        state[i] = (at - (uint32_t)bytes) << PLACE_BITS | place;
    }
}

/* Takes in the primes whose squares the segment reaches. */
static void activate(cry_sieve *sieve)
{
    uint64_t end = (sieve->begin + (uint64_t)sieve->bytes) * CRY_SIEVE_TURN;
    for (; sieve->active < sieve->count; sieve->active++) {
        uint64_t p = sieve->primes[sieve->active];
        if (p * p >= end) break;
        sieve->state[sieve->active] = sieve->active < sieve->dense
                                          ? first_dense(p, sieve->begin)
                                          : first_sparse(p, sieve->begin);
    }
}

void cry_sieve_segment(cry_sieve *sieve)
{
    uint8_t *bits = sieve->bits;
    sieve->begin += (uint64_t)sieve->bytes;
    activate(sieve);
    lay_patterns(bits, sieve->bytes, sieve->begin);
    if (sieve->begin == 0) mend_first(bits, sieve->bytes);
    int64_t dense = sieve->active < sieve->dense ? sieve->active : sieve->dense;
    strike_dense(bits, sieve->bytes, sieve->primes, sieve->state, dense);
    strike_sparse(bits, sieve->bytes, sieve->primes + dense, sieve->state + dense,
                  sieve->active - dense);
}

