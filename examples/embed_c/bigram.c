/* Learns which byte follows which in a file, on one thread and on three, and checks that both learn,
 * and the same to the last bit.
 *
 *   h = w_in[byte],  loss = cross-entropy of softmax(h w_out^T) with the next byte;  AdamW
 *
 *     bigram FILE          CMakeLists.txt says how to build it */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crystalline/parallel.h"

enum { V = 256, D = 48, MOST = 6000, STEPS = 40, WEIGHTS = 2 * V * D };

/* Weights, gradients and the optimizer's memory: w_in (V, D), then w_out (V, D) in each. */
typedef struct learner {
    float w[WEIGHTS], dw[WEIGHTS], m[WEIGHTS], v[WEIGHTS];
    float h[MOST * D], dh[MOST * D], losses[MOST];
    int32_t list[MOST];
    int64_t index[V + 1];
} learner;

/* One step on the pairs ids[r], ids[r + 1]; returns the mean loss in nats, or NaN after an error. */
static double step(learner *l, const cry_team *team, const int32_t *ids, int64_t R, int number)
{
    int64_t groups[CRY_GROUPS + 1];
    for (int g = 0; g <= CRY_GROUPS; g++) groups[g] = R * g / CRY_GROUPS;
    cry_adamw c = {.grad_scale = 1.0f, .beta1 = 0.9f, .rest1 = 0.1f, .beta2 = 0.99f, .rest2 = 0.01f,
                   .eps = 1e-8f, .decay = 1.0f};
    c.step_size = (float)(0.05 / (1.0 - pow(0.9, number)));
    c.root_bias2 = (float)sqrt(1.0 - pow(0.99, number));
    cry_status status = cry_embedding(team, l->h, l->w, ids, R, D, V);
    if (status == CRY_OK)
        status = cry_head(team, l->losses, l->dh, l->dw + V * D, l->h, l->w + V * D, ids + 1, groups,
                          R, D, V, 1.0f / (float)R, 0);
    if (status == CRY_OK)
        status = cry_embedding_bwd(team, l->dw, l->dh, ids, groups, R, D, V, 0, l->list, l->index);
    if (status == CRY_OK) status = cry_adamw_step(team, l->w, l->m, l->v, l->dw, WEIGHTS, &c);
    if (status != CRY_OK) return NAN;
    double sum = 0.0;
    for (int64_t r = 0; r < R; r++) sum += (double)l->losses[r];
    return sum / (double)R;
}

/* Trains a new learner on a team of `threads`; NULL when there is no memory. */
static learner *learn(int threads, const int32_t *ids, int64_t R, double *first, double *last)
{
    learner *l = calloc(1, sizeof *l);
    cry_team team = {.kernels = cry_kernels_for(NULL), .threads = threads};
    int64_t groups[CRY_GROUPS + 1];
    for (int g = 0; g <= CRY_GROUPS; g++) groups[g] = R * g / CRY_GROUPS;
    team.shared_len = (cry_need_head(&team, groups, D, V, 1) + 15) / 16 * 16;
    team.shared = aligned_alloc(64, (size_t)team.shared_len * sizeof(float));
    team.pool = cry_pool_new(threads, NULL);
    if (l && team.shared && team.pool) {
        for (int i = 0; i < WEIGHTS; i++) l->w[i] = 0.1f * (float)((i * 37 + 11) % 101 - 50) / 50.0f;
        *first = step(l, &team, ids, R, 1);
        for (int number = 2; number <= STEPS; number++) *last = step(l, &team, ids, R, number);
    }
    cry_pool_free(team.pool);
    free(team.shared);
    return l;
}

int main(int argc, char **argv)
{
    static int32_t ids[MOST + 1];
    int64_t n = 0;
    FILE *f = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!f) {
        fprintf(stderr, "usage: bigram FILE\n");
        return 2;
    }
    for (int c; n <= MOST && (c = getc(f)) != EOF;) ids[n++] = c;
    fclose(f);
    if (n < 100) {
        fprintf(stderr, "bigram: %s has %d bytes; give a file of 100 or more\n", argv[1], (int)n);
        return 2;
    }
    double first, last, first_of_three, last_of_three;
    learner *one = learn(1, ids, n - 1, &first, &last);
    learner *three = learn(3, ids, n - 1, &first_of_three, &last_of_three);
    if (!one || !three) return 1;
    int learnt = last < 0.6 * first, same = memcmp(one->w, three->w, sizeof one->w) == 0;
    printf("%s: %.3f nats per byte at first, %.3f after %d steps; 1 and 3 threads: %s\n",
           cry_kernels_for(NULL)->isa, first, last, STEPS, same ? "the same bits" : "DIFFERENT BITS");
    free(one);
    free(three);
    return learnt && same ? 0 : 1;
}
