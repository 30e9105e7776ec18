/* What stands in a sieved segment: count, list, first.
 *
 * The segment is read by words of eight bytes, little end first, so that bit i of a word stands for
 * 30 (i / 8) + TURN[i mod 8] from the word's first number.  240 is a multiple of 12: one mask of a
 * group fits every word. */
#include <string.h>

#include "sieve.h"

enum { BITS = 64 };

static const uint8_t TURN[8] = {1, 7, 11, 13, 17, 19, 23, 29};

static unsigned number_of(int bit) { return (unsigned)(bit / 8 * CRY_SIEVE_TURN + TURN[bit % 8]); }

uint64_t cry_sieve_mask(int group)
{
    uint64_t mask = 0;
    for (int bit = 0; bit < BITS; bit++)
        if (group < 0 || number_of(bit) % 12 == (unsigned)group) mask |= (uint64_t)1 << bit;
    return mask;
}

/* The words of a segment that hold numbers of [lo, hi], and what of the first and the last one. */
typedef struct {
    const uint8_t *words;
    int64_t from, to; /* inclusive; to < from for none */
    uint64_t first, last;
    uint64_t base; /* what word 0 counts from */
} view;

/* Bits of the numbers in a word that are `edge` or more. */
static uint64_t not_below(uint64_t edge)
{
    uint64_t mask = 0;
    for (int bit = 0; bit < BITS; bit++)
        if (number_of(bit) >= edge) mask |= (uint64_t)1 << bit;
    return mask;
}

static view view_of(const cry_sieve *sieve, uint64_t lo, uint64_t hi)
{
    uint64_t base = sieve->begin * CRY_SIEVE_TURN;
    uint64_t most = (uint64_t)sieve->bytes * CRY_SIEVE_TURN - 1;
    view v = {sieve->bits, 0, -1, 0, 0, base};
    if (hi < base || lo > base + most || lo > hi) return v;
    uint64_t low = lo > base ? lo - base : 0;
    uint64_t high = hi < base + most ? hi - base : most;
    v.from = (int64_t)(low / CRY_SIEVE_WORD);
    v.to = (int64_t)(high / CRY_SIEVE_WORD);
    v.first = not_below(low % CRY_SIEVE_WORD);
    v.last = ~not_below(high % CRY_SIEVE_WORD + 1);
    return v;
}

static uint64_t word_at(const view *v, int64_t i)
{
    uint64_t word;
    memcpy(&word, v->words + i * 8, sizeof word);
    if (i == v->from) word &= v->first;
    if (i == v->to) word &= v->last;
    return word;
}

/* Written out: the compiler turns it into vector code where a single popcnt may not be assumed. */
static uint64_t ones(uint64_t x)
{
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    x += x >> 8;
    x += x >> 16;
    return (x + (x >> 32)) & 0x7f;
}

int64_t cry_sieve_count(const cry_sieve *sieve, uint64_t lo, uint64_t hi, uint64_t mask)
{
    view v = view_of(sieve, lo, hi);
    uint64_t sum = 0;
    if (v.to < v.from) return 0;
    sum += ones(word_at(&v, v.from) & mask);
    if (v.to > v.from) sum += ones(word_at(&v, v.to) & mask);
    for (int64_t i = v.from + 1; i < v.to; i++) {
        uint64_t word;
        memcpy(&word, v.words + i * 8, sizeof word);
        sum += ones(word & mask);
    }
    return (int64_t)sum;
}

int64_t cry_sieve_list(const cry_sieve *sieve, uint64_t lo, uint64_t hi, uint64_t mask,
                       uint64_t *out)
{
    view v = view_of(sieve, lo, hi);
    uint8_t number[BITS];
    int64_t count = 0;
    for (int bit = 0; bit < BITS; bit++) number[bit] = (uint8_t)number_of(bit);
    for (int64_t i = v.from; i <= v.to; i++) {
        uint64_t base = v.base + (uint64_t)i * CRY_SIEVE_WORD;
        for (uint64_t word = word_at(&v, i) & mask; word; word &= word - 1)
            out[count++] = base + number[__builtin_ctzll(word)];
    }
    return count;
}

uint64_t cry_sieve_first(const cry_sieve *sieve, uint64_t lo, uint64_t hi, uint64_t mask)
{
    view v = view_of(sieve, lo, hi);
    for (int64_t i = v.from; i <= v.to; i++) {
        uint64_t word = word_at(&v, i) & mask;
        if (word)
            return v.base + (uint64_t)i * CRY_SIEVE_WORD + number_of(__builtin_ctzll(word));
    }
    return 0;
}
