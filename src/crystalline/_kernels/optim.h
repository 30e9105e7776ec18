/* AdamW with decoupled decay (Loshchilov and Hutter 2019), and the sum of squares for clipping.
 *   g = grad_scale grad;  m = b1 m + rest1 g;  v = b2 v + rest2 g^2,  rest = 1 - b
 *   p = decay p - step_size m / (sqrt(v) / root_bias2 + eps) */
#ifndef CRY_OPTIM_H
#define CRY_OPTIM_H

#include "crystalline/kernels.h"
#include "mathfun.h"

static void adamw(float *p, float *m, float *v, const float *grad, int64_t n, const cry_adamw *c)
{
    v16 b1 = v16_set(c->beta1), b2 = v16_set(c->beta2), scale = v16_set(c->grad_scale);
    v16 a1 = v16_set(c->rest1), a2 = v16_set(c->rest2), decay = v16_set(c->decay);
    v16 step = v16_set(-c->step_size), eps = v16_set(c->eps), root = v16_set(c->root_bias2);
    for (int64_t j = 0; j < n; j += 16) {
        int64_t left = n - j;
        v16 g = v16_mul(scale, v16_get(grad + j, left));
        v16 mv = v16_fma(b1, v16_get(m + j, left), v16_mul(a1, g));
        v16 vv = v16_fma(b2, v16_get(v + j, left), v16_mul(a2, v16_mul(g, g)));
        v16 under = v16_add(v16_div(v16_sqrt(vv), root), eps);
        v16 pv = v16_fma(step, v16_div(mv, under), v16_mul(decay, v16_get(p + j, left)));
        v16_put(m + j, mv, left);
        v16_put(v + j, vv, left);
        v16_put(p + j, pv, left);
    }
}

/* The updates of `steps` steps in which the gradient was zero: past(steps,3) holds their decay, step
 * size and root_bias2, in this order; c the rest.  The same operations as above, so the same bits. */
static void adamw_rest(float *p, float *m, float *v, const float *past, int64_t steps, int64_t n,
                       const cry_adamw *c)
{
    v16 b1 = v16_set(c->beta1), b2 = v16_set(c->beta2), eps = v16_set(c->eps), zero = v16_zero();
    for (int64_t j = 0; j < n; j += 16) {
        int64_t left = n - j;
        v16 pv = v16_get(p + j, left), mv = v16_get(m + j, left), vv = v16_get(v + j, left);
        /* A first moment of zero stays zero, and so does the quotient; not-a-number is its own.  Lanes
         * are told apart before they are brought together, or one of those would hide the others. */
        v16 size = v16_max(mv, v16_sub(zero, mv));
        int moves = v16_maxall(v16_if_lt(zero, size, size, zero)) > 0.0f;
        for (const float *t = past; t < past + 3 * steps; t += 3) {
            v16 step = v16_set(-t[1]), quotient;
            mv = v16_fma(b1, mv, zero);
            vv = v16_fma(b2, vv, zero);
            quotient = moves ? v16_div(mv, v16_add(v16_div(v16_sqrt(vv), v16_set(t[2])), eps)) : mv;
            pv = v16_fma(step, quotient, v16_mul(v16_set(t[0]), pv));
        }
        v16_put(p + j, pv, left);
        v16_put(m + j, mv, left);
        v16_put(v + j, vv, left);
    }
}

/* Sum of x^2 in 16 lanes. */
static float squared_norm(const float *x, int64_t n)
{
    v16 s = v16_zero();
    for (int64_t j = 0; j < n; j += 16) {
        v16 a = v16_get(x + j, n - j);
        s = v16_fma(a, a, s);
    }
    return v16_sum(s);
}

#endif
