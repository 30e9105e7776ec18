/* Miller and Rabin's test to 2^64, and primes found by it alone.
 *
 * n - 1 = d 2^r, d odd.  A prime n has a^d = 1 or a^(d 2^i) = -1 (mod n), some i < r, for every base
 * a that it does not divide.  Products modulo n are Montgomery's: with R = 2^64 a number x is kept as
 * x R mod n, and a product costs three multiplications and no division. */
#include "sieve.h"

enum { BASES = 12 };

typedef unsigned __int128 wide;

static const uint8_t BASE[BASES] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37};
static const uint8_t TURN[8] = {1, 7, 11, 13, 17, 19, 23, 29};

typedef struct {
    uint64_t n, inverse; /* inverse n = 1 (mod R) */
    uint64_t one, minus; /* R and -R mod n: 1 and -1 */
    uint64_t square;     /* R^2 mod n: brings a number in */
    uint64_t odd;        /* d */
    int twos;            /* r */
} field;

/* x y / R mod n, below n; x and y below n. */
static uint64_t product(const field *f, uint64_t x, uint64_t y)
{
    wide z = (wide)x * y;
    uint64_t high = (uint64_t)(z >> 64);
    uint64_t quotient = (uint64_t)z * f->inverse;
    uint64_t low = (uint64_t)((wide)quotient * f->n >> 64);
    return high < low ? high - low + f->n : high - low;
}

static field field_of(uint64_t n)
{
    field f = {.n = n, .inverse = n, .odd = n - 1};
    /* Newton: each turn doubles the right bits, of which an odd n itself has three. */
    for (int i = 0; i < 5; i++) f.inverse *= 2 - n * f.inverse;
    f.one = (0 - n) % n;
    f.minus = n - f.one;
    f.square = (uint64_t)((wide)f.one * f.one % n);
    f.twos = __builtin_ctzll(f.odd);
    f.odd >>= f.twos;
    return f;
}

/* Whether n behaves like a prime to one base, which it does not divide. */
static int passes(const field *f, uint64_t base)
{
    uint64_t a = product(f, base % f->n, f->square), x = f->one;
    for (int bit = 63 - __builtin_clzll(f->odd); bit >= 0; bit--) {
        x = product(f, x, x);
        if (f->odd >> bit & 1) x = product(f, x, a);
    }
    if (x == f->one || x == f->minus) return 1;
    for (int i = 1; i < f->twos; i++) {
        x = product(f, x, x);
        if (x == f->minus) return 1;
    }
    return 0;
}

int cry_is_prime(uint64_t n)
{
    if (n < 2) return 0;
    for (int i = 0; i < BASES; i++)
        if (n % BASE[i] == 0) return n == BASE[i];
    if (n < 41 * 41) return 1;
    field f = field_of(n);
    for (int i = 0; i < BASES; i++)
        if (!passes(&f, BASE[i])) return 0;
    return 1;
}

int64_t cry_primes_between(uint64_t lo, uint64_t hi, uint64_t mask, uint64_t *out, int64_t room)
{
    int64_t count = 0;
    for (uint64_t byte = lo / CRY_SIEVE_TURN; byte <= hi / CRY_SIEVE_TURN; byte++) {
        uint64_t base = byte * CRY_SIEVE_TURN, here = mask >> byte % 8 * 8;
        for (int b = 0; b < 8; b++) {
            /* The number itself may lie beyond 2^64: compared by what is left to hi. */
            if (TURN[b] > hi - base) break;
            uint64_t n = base + TURN[b];
            if (n < lo || !(here >> b & 1) || !cry_is_prime(n)) continue;
            if (count == room) return count;
            out[count++] = n;
        }
    }
    return count;
}
