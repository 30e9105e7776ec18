/* Primes: a segmented sieve to 2^53, and a proof for single numbers to 2^64.
 *
 * Only numbers prime to 30 are kept, eight to a byte: bit b of byte g stands for 30 g + TURN[b],
 * TURN = 1 7 11 13 17 19 23 29.  A word of eight bytes covers 240 numbers, a multiple of 12, so the
 * group p mod 12 of a bit is known from its place in the word, and a group is a mask of words.
 * 2, 3 and 5 are not in it: the caller has them apart.
 *
 * Nothing here allocates.  Whoever calls gives the base primes, which are only read and which many
 * sieves may share, a word of state for each of them, and the memory of the segment. */
#ifndef CRY_SIEVE_H
#define CRY_SIEVE_H

#include <stdint.h>

enum {
    CRY_SIEVE_TURN = 30,      /* numbers a byte stands for */
    CRY_SIEVE_WORD = 240,     /* numbers a word stands for */
    CRY_SIEVE_PRESIEVED = 35, /* primes 7 .. 163, whose multiples come as ready patterns */
    CRY_SIEVE_FIRST = 167     /* the first prime that is crossed off one by one */
};

typedef struct {
    const uint32_t *primes; /* base primes from 167 on, ascending, to the root of the last number */
    uint32_t *state;        /* where each of them goes on */
    int64_t count;          /* base primes */
    int64_t active;         /* of them, those whose square the segments have reached */
    int64_t dense;          /* of them, those at most `bytes` */
    uint8_t *bits;          /* the segment; before and behind it, as much again for overshoot */
    int64_t bytes;          /* of the segment: a multiple of 8, at most 2^20 */
    uint64_t begin;         /* byte number at which the segment begins, a multiple of 8 */
} cry_sieve;

/* Makes the patterns; once, before anything else here. */
void cry_sieve_prepare(void);

/* Fills in `dense` and starts before the first segment: it will begin at byte number `begin`.
 * The caller has set primes, state, count, bits and bytes. */
void cry_sieve_start(cry_sieve *sieve, uint64_t begin);

/* Sieves the segment at `begin`; the first call the first one, each later call the one after. */
void cry_sieve_segment(cry_sieve *sieve);

/* The mask of a group, of all for -1; 0 for those that hold no prime but 2, 3 and 5. */
uint64_t cry_sieve_mask(int group);

/* Of the segment's primes in [lo, hi] that the mask lets through: how many; all of them,
 * ascending, to out, returning how many; the first one, 0 for none. */
int64_t cry_sieve_count(const cry_sieve *sieve, uint64_t lo, uint64_t hi, uint64_t mask);
int64_t cry_sieve_list(const cry_sieve *sieve, uint64_t lo, uint64_t hi, uint64_t mask,
                       uint64_t *out);
uint64_t cry_sieve_first(const cry_sieve *sieve, uint64_t lo, uint64_t hi, uint64_t mask);

/* Whether n is prime, for every n: Miller and Rabin's test with the first 12 primes as bases, which
 * no composite below 3.3e24 passes (Sorenson and Webster 2015). */
int cry_is_prime(uint64_t n);

/* By that test, the primes in [lo, hi] that the mask lets through, ascending, at most `room`. */
int64_t cry_primes_between(uint64_t lo, uint64_t hi, uint64_t mask, uint64_t *out, int64_t room);

#endif
