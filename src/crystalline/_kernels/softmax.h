/* Cross-entropy of a row of logits z with target t.  m = max z,  S = sum exp(z - m)
 *   loss = log S + m - z_t;   dz = scale (exp(z - m) / S - [j = t])
 * The maximum is exact, the sum runs in 16 lanes.  A row without a target (-1) has no loss, and its
 * gradient is zero. */
#ifndef CRY_SOFTMAX_H
#define CRY_SOFTMAX_H

#include "operands.h"

/* losses(rows); logits(rows,V) become their gradient when it is asked for, else are spoilt.  A gradient
 * in bf16 fills the first half of each row, with a zero after an odd V. */
static void cross_entropy(float *losses, float *logits, const int32_t *targets, int64_t rows,
                          int64_t V, float scale, int gradient)
{
    for (int64_t i = 0; i < rows; i++) {
        float *z = logits + i * V;
        if (targets[i] < 0) {
            losses[i] = 0.0f;
            memset(z, 0, (size_t)V * sizeof(float));
            continue;
        }
        float zt = z[targets[i]];
        v16 top = v16_set(-INFINITY), s = v16_zero();
        for (int64_t j = 0; j < V; j += 16) top = v16_max(v16_get_or(z + j, V - j, -INFINITY), top);
        float m = v16_maxall(top);
        for (int64_t j = 0; j < V; j += 16) {
            v16 e = v16_exp(v16_sub(v16_get_or(z + j, V - j, -INFINITY), v16_set(m)));
            s = v16_add(s, e);
            v16_put(z + j, e, V - j);
        }
        float sum = v16_sum(s), log_sum[16];
        v16_store(log_sum, v16_log(v16_set(sum)));
        losses[i] = (log_sum[0] + m) - zt;
        if (!gradient) continue;
        float factor = scale / sum, at_target = z[targets[i]] * factor - scale;
        for (int64_t j = 0; j < V; j += 16)
            value_put(z, j, v16_mul(v16_get(z + j, V - j), v16_set(factor)), V - j);
        value_put(z, targets[i], v16_set(at_target), 1);
        if (V % OPERAND_STEPS) value_put(z, V, v16_zero(), 1);
    }
}

#endif
