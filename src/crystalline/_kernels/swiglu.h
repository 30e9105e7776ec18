/* SwiGLU.  act = g s(g) u,  s(g) = 1 / (1 + exp(-g)),  gu = [g, u]
 *   dg = dact u s (1 + g (1 - s)),   du = dact g s */
#ifndef CRY_SWIGLU_H
#define CRY_SWIGLU_H

#include "operands.h"

CRY_INLINE v16 v16_sigmoid(v16 g)
{
    v16 e = v16_exp(v16_sub(v16_zero(), g));
    return v16_div(v16_set(1.0f), v16_add(v16_set(1.0f), e));
}

/* act(rows,F) from gu(rows,2F). */
static void swiglu(float *act, const float *gu, int64_t rows, int64_t F)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < F; j += 16) {
            int64_t n = F - j, at = 2 * i * F + j;
            v16 g = value_get(gu, at, n), u = value_get(gu, at + F, n);
            fetch_ahead(operand_at(gu, at), 2 * F / OPERAND_STEPS, i + 1 < rows);
            fetch_ahead(operand_at(gu, at + F), 2 * F / OPERAND_STEPS, i + 1 < rows);
            value_put(act, i * F + j, v16_mul(v16_mul(g, v16_sigmoid(g)), u), n);
        }
}

/* dgu(rows,2F), which may be gu, from dact(rows,F); act(rows,F), which may be dact, if it is not NULL. */
CRY_INLINE void swiglu_back(float *dgu, float *act, const float *dact, const float *gu, int64_t rows,
                            int64_t F)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < F; j += 16) {
            int64_t n = F - j, at = 2 * i * F + j;
            v16 g = value_get(gu, at, n), u = value_get(gu, at + F, n);
            v16 d = value_get(dact, i * F + j, n);
            v16 s = v16_sigmoid(g), one = v16_set(1.0f);
            fetch_ahead(operand_at(gu, at), 2 * F / OPERAND_STEPS, i + 1 < rows);
            fetch_ahead(operand_at(gu, at + F), 2 * F / OPERAND_STEPS, i + 1 < rows);
            fetch_ahead(operand_at(dact, i * F + j), F / OPERAND_STEPS, i + 1 < rows);
            v16 slope = v16_mul(s, v16_fma(g, v16_sub(one, s), one));
            value_put(dgu, at, v16_mul(v16_mul(d, u), slope), n);
            v16 gs = v16_mul(g, s);
            value_put(dgu, at + F, v16_mul(d, gs), n);
            if (act) value_put(act, i * F + j, v16_mul(gs, u), n);
        }
}

CRY_INLINE void swiglu_bwd(float *dgu, const float *dact, const float *gu, int64_t rows, int64_t F)
{
    swiglu_back(dgu, 0, dact, gu, rows, F);
}

/* act(rows,F) is dact before, and afterwards what swiglu gives, to the bit. */
static void swiglu_bwd_act(float *dgu, float *act, const float *gu, int64_t rows, int64_t F)
{
    swiglu_back(dgu, act, act, gu, rows, F);
}

#endif
