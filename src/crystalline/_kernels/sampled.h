/* Cross-entropy over S sampled classes that stand for all V (Bengio and Senecal 2008; Jean, Cho,
 * Memisevic and Bengio 2015).  Class c is among the samples e_c times on average.
 *
 *   z_j = h w[c_j] - log e of the samples c_j;   z_t = h w[t] - log e_t of the token's own target
 *   A sample that is the target is left out.  m = max of all,  Z = sum exp(z_j - m) + exp(z_t - m)
 *   loss = log Z + m - z_t;   dz_j = scale exp(z_j - m) / Z;   dz_t = scale (exp(z_t - m) / Z - 1)
 *
 * The dot product h w[t] and the sum of the exponentials run in 16 lanes; the target's is added last.
 * Where every class is sampled, e = 1, this is the full cross-entropy. */
#ifndef CRY_SAMPLED_H
#define CRY_SAMPLED_H

#include "crystalline/kernels.h"
#include "mathfun.h"

/* Where `id` stands among the rising samples, or -1. */
static int64_t place_among(const int32_t *samples, int64_t S, int32_t id)
{
    int64_t low = 0, high = S;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (samples[middle] < id) low = middle + 1;
        else high = middle;
    }
    return low < S && samples[low] == id ? low : -1;
}

static float dot(const float *a, const float *b, int64_t n)
{
    v16 s = v16_zero();
    for (int64_t j = 0; j < n; j += 16) s = v16_fma(v16_get(a + j, n - j), v16_get(b + j, n - j), s);
    return v16_sum(s);
}

static v16 corrected(const float *z, const float *log_expected, int64_t left)
{
    return v16_sub(v16_get_or(z, left, -INFINITY), v16_get(log_expected, left));
}

/* losses(rows); logits(rows,S), h w[c_j] before, become dz; dz_target(rows); dh(rows,D) = dz_t w[t],
 * to which the samples' part is to be added.  With dh NULL losses only, and logits are spoilt. */
static void sampled_entropy(float *losses, float *dz_target, float *dh, float *logits, const float *h,
                            const int32_t *targets, int64_t rows, const cry_sampled *c)
{
    int64_t S = c->S, D = c->D;
    for (int64_t i = 0; i < rows; i++) {
        float *z = logits + i * S;
        if (targets[i] < 0) {
            losses[i] = dz_target[i] = 0.0f;
            memset(z, 0, (size_t)S * sizeof(float));
            if (dh) memset(dh + i * D, 0, (size_t)D * sizeof(float));
            continue;
        }
        const float *wt = c->w + targets[i] * D;
        float zt = dot(h + i * D, wt, D) - c->log_expected[targets[i]];
        int64_t hit = place_among(c->samples, S, targets[i]);
        if (hit >= 0) z[hit] = -INFINITY;
        v16 top = v16_set(zt), s = v16_zero();
        for (int64_t j = 0; j < S; j += 16)
            top = v16_max(corrected(z + j, c->sample_log + j, S - j), top);
        float m = v16_maxall(top), lane[16];
        for (int64_t j = 0; j < S; j += 16) {
            v16 e = v16_exp(v16_sub(corrected(z + j, c->sample_log + j, S - j), v16_set(m)));
            s = v16_add(s, e);
            v16_put(z + j, e, S - j);
        }
        v16_store(lane, v16_exp(v16_set(zt - m)));
        float own = lane[0], sum = v16_sum(s) + own;
        v16_store(lane, v16_log(v16_set(sum)));
        losses[i] = (lane[0] + m) - zt;
        if (!dh) continue;
        float factor = c->scale / sum;
        for (int64_t j = 0; j < S; j += 16)
            v16_put(z + j, v16_mul(v16_get(z + j, S - j), v16_set(factor)), S - j);
        dz_target[i] = own * factor - c->scale;
        for (int64_t j = 0; j < D; j += 16)
            v16_put(dh + i * D + j, v16_mul(v16_set(dz_target[i]), v16_get(wt + j, D - j)), D - j);
    }
}

#endif
