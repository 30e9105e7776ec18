/* Softmax and RMSNorm around the caches, by the table of one instruction set: for every width up to
 * WIDEST and every place in a cache line the bits of the same through the caches, and not a number
 * beside the rows.  Prints how many calls it compared. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "crystalline/kernels.h"

extern const cry_kernels TABLE;

enum { WIDEST = 83, ROWS = 6, LINE = 16, ROOM = ROWS * WIDEST + 4 * LINE };

static _Alignas(64) float x[ROOM], w[ROOM], y[ROOM], rrms[ROOM], scratch[ROOM];
static float near_y[ROOM], near_rrms[ROOM];
static const float OUTSIDE = 7.0f;

static void prepare(void)
{
    for (int i = 0; i < ROOM; i++) y[i] = rrms[i] = scratch[i] = OUTSIDE;
}

/* Whether the n floats from `at` on are these, and the others what they were. */
static int only(const float *all, int64_t at, const float *due, int64_t n)
{
    for (int64_t i = 0; i < ROOM; i++)
        if ((i < at || i >= at + n) && (all[i] < OUTSIDE || all[i] > OUTSIDE)) return 0;
    return !memcmp(all + at, due, (size_t)n * sizeof *due);
}

static int equal(int64_t rows, int64_t D, int64_t to, int64_t from)
{
    prepare();
    TABLE.softmax(near_y, x + from, rows, D, 0);
    TABLE.softmax(y + LINE + to, x + from, rows, D, scratch + LINE + from);
    if (!only(y, LINE + to, near_y, rows * D)) return 0;
    for (int i = 0; i < ROOM; i++) /* the work space is one row */
        if ((i < LINE + from || i >= LINE + from + D) && !(scratch[i] > 6.0f)) return 0;
    prepare();
    TABLE.rmsnorm(near_y, near_rrms, x + from, w + to, rows, D, 1e-5f);
    TABLE.rmsnorm_far(y + LINE + to, rrms + LINE, x + from, w + to, rows, D, 1e-5f);
    return only(y, LINE + to, near_y, rows * D) && only(rrms, LINE, near_rrms, rows);
}

int main(void)
{
    long compared = 0;
    uint32_t state = 1;
    for (int i = 0; i < ROOM; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)state * 4e-9f, w[i] = x[i] + 1.0f;
    }
    for (int64_t D = 1; D <= WIDEST; D++)
        for (int64_t to = 0; to < LINE; to++)
            for (int64_t rows = 1; rows <= ROWS; rows++, compared++)
                if (!equal(rows, D, to, 5 * to % LINE)) {
                    printf("%d rows of %d at %d differ\n", (int)rows, (int)D, (int)to);
                    return 1;
                }
    printf("%ld\n", compared);
    return 0;
}
