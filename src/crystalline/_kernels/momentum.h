/* Updates that keep one momentum, and the running average of weights.
 *   sgd    Polyak 1964; Sutskever et al. 2013 for Nesterov's form:  m = b2 m + r2 g,  u = b1 m + r1 g
 *   lion   Chen et al. 2023:  u = sign(b1 m + r1 g),  m = b2 m + r2 g
 *   p = decay p - step u
 *   ema    a += rate (p - a) */
#ifndef CRY_MOMENTUM_H
#define CRY_MOMENTUM_H

#include "crystalline/kernels.h"
#include "mathfun.h"

CRY_INLINE v16 sgd_direction(v16 *m, v16 g, const cry_momentum *c)
{
    *m = v16_fma(v16_set(c->beta2), *m, v16_mul(v16_set(c->rest2), g));
    return v16_fma(v16_set(c->beta1), *m, v16_mul(v16_set(c->rest1), g));
}

static void sgd(float *p, float *m, const float *grad, int64_t n, const cry_momentum *c)
{
    v16 scale = v16_set(c->grad_scale), step = v16_set(-c->step_size), decay = v16_set(c->decay);
    for (int64_t j = 0; j < n; j += 16) {
        int64_t left = n - j;
        v16 mv = v16_get(m + j, left), g = v16_mul(scale, v16_get(grad + j, left));
        v16 u = sgd_direction(&mv, g, c);
        v16_put(p + j, v16_fma(step, u, v16_mul(decay, v16_get(p + j, left))), left);
        v16_put(m + j, mv, left);
    }
}

static void lion(float *p, float *m, const float *grad, int64_t n, const cry_momentum *c)
{
    v16 b1 = v16_set(c->beta1), b2 = v16_set(c->beta2), r1 = v16_set(c->rest1), r2 = v16_set(c->rest2);
    v16 scale = v16_set(c->grad_scale), decay = v16_set(c->decay), zero = v16_zero();
    v16 up = v16_set(-c->step_size), down = v16_set(c->step_size);
    for (int64_t j = 0; j < n; j += 16) {
        int64_t left = n - j;
        v16 g = v16_mul(scale, v16_get(grad + j, left)), mv = v16_get(m + j, left);
        v16 u = v16_fma(b1, mv, v16_mul(r1, g));
        v16 move = v16_if_lt(zero, u, up, v16_if_lt(u, zero, down, zero));
        v16_put(p + j, v16_add(v16_mul(decay, v16_get(p + j, left)), move), left);
        v16_put(m + j, v16_fma(b2, mv, v16_mul(r2, g)), left);
    }
}

static void ema(float *average, const float *p, int64_t n, float rate)
{
    v16 r = v16_set(rate);
    for (int64_t j = 0; j < n; j += 16) {
        v16 a = v16_get(average + j, n - j);
        v16_put(average + j, v16_fma(r, v16_sub(v16_get(p + j, n - j), a), a), n - j);
    }
}

#endif
