/* Muon (Jordan et al. 2024) for one matrix: the momentum's update u, made nearly orthogonal.
 *   X = u / |u|;   X <- a X + b (X X^T) X + c (X X^T)^2 X, once for each (a, b, c);   p = decay p - step X
 * The singular values of X tend to 1 and its singular vectors stay (Newton and Schulz; Kovarik 1970;
 * Bjorck and Bowie 1971).  X is multiplied only once: with A = X X^T, of the short side n, every step
 * is a polynomial M = a + b A + c A^2, after which A is M A M and the factors so far are Q M; the
 * result is Q X.  All these commute and are symmetric: one half of each product is computed and
 * mirrored.  For a high matrix A is X^T X and the result X Q, so nothing is transposed.
 * Sums are chains in the order of the index; |u|^2 runs in 16 lanes. */
#ifndef CRY_MUON_H
#define CRY_MUON_H

#include "crystalline/kernels.h"
#include "matmul.h"
#include "momentum.h"
#include "optim.h"
#include "pack.h"

/* Panels of b(k,n), element (t, j) at b[t ks + j ns]. */
static void muon_pack(float *panels, const float *b, int64_t ks, int64_t ns, int64_t k, int64_t n)
{
    for (int64_t j = 0; j < n; j += TILE_N, panels += k * TILE_N)
        pack(panels, b + j * ns, ks, ns, k, cry_min(TILE_N, n - j));
}

/* The half of c(n,n) above the diagonal becomes the mirror of that below. */
static void muon_mirror(float *c, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        int64_t rows = cry_min(16, n - i);
        for (int64_t j = 0; j < i; j += 16) {
            v16 r[16];
            UNROLL for (int64_t u = 0; u < 16; u++)
                r[u] = u < rows ? v16_load(c + (i + u) * n + j) : v16_zero();
            v16_transpose(r);
            UNROLL for (int64_t u = 0; u < 16; u++) v16_put(c + (j + u) * n + i, r[u], rows);
        }
        for (int64_t u = i; u < i + rows; u++)
            for (int64_t v = i; v < u; v++) c[v * n + u] = c[u * n + v];
    }
}

/* c(n,n) = a b, known to be symmetric: a(i, t) at a[i rs + t cs], b in panels. */
static void muon_product(float *c, const float *a, int64_t rs, int64_t cs, const float *panels,
                         int64_t n, int64_t k)
{
    for (int64_t j = 0; j < n; j += TILE_N)
        gemm(c + j * n + j, n, 0, 0, a + j * rs, rs, cs, panels + j * k, n - j, cry_min(TILE_N, n - j),
             k);
    muon_mirror(c, n);
}

/* y(n,n), which holds x^2, becomes c[0] + c[1] x + c[2] x^2. */
static void muon_polynomial(float *y, const float *x, int64_t n, const float *c)
{
    v16 b = v16_set(c[1]), square = v16_set(c[2]);
    for (int64_t j = 0; j < n * n; j += 16) {
        int64_t left = n * n - j;
        v16 linear = v16_mul(b, v16_get(x + j, left));
        v16_put(y + j, v16_fma(square, v16_get(y + j, left), linear), left);
    }
    for (int64_t i = 0; i < n; i++) y[i * n + i] += c[0];
}

/* Q(n,n), the product of all polynomials, from A(n,n), which is spoilt: returns the one of the `squares`
 * that it is in. */
static float *muon_factor(float *A, float *squares[3], float *panels, int64_t n, const cry_muon *c)
{
    float *M = squares[0], *R = squares[1], *Q = squares[2];
    for (int64_t t = 0; t < c->iterations; t++) {
        int more = t + 1 < c->iterations;
        muon_pack(panels, A, 1, n, n, n);
        muon_product(M, A, n, 1, panels, n, n);
        muon_polynomial(M, A, n, c->coefficients + 3 * t);
        if (more) muon_product(R, M, n, 1, panels, n, n);
        if (more || t > 0) muon_pack(panels, M, 1, n, n, n);
        if (more) muon_product(A, R, n, 1, panels, n, n);
        float *next = R;
        if (t > 0) muon_product(R, Q, n, 1, panels, n, n), R = Q;
        else next = M, M = Q;
        Q = next;
    }
    return Q;
}

/* X(n) = u / |u|, or zeros where |u|^2 is none that a float holds; m is brought up to date. */
static void muon_direction(float *X, float *m, const float *grad, int64_t n, const cry_momentum *c)
{
    v16 scale = v16_set(c->grad_scale);
    for (int64_t j = 0; j < n; j += 16) {
        v16 mv = v16_get(m + j, n - j), g = v16_mul(scale, v16_get(grad + j, n - j));
        v16_put(X + j, sgd_direction(&mv, g, c), n - j);
        v16_put(m + j, mv, n - j);
    }
    float square = squared_norm(X, n);
    v16 shrink = square > 0.0f ? v16_div(v16_set(1.0f), v16_sqrt(v16_set(square))) : v16_zero();
    for (int64_t j = 0; j < n; j += 16)
        v16_put(X + j, v16_mul(shrink, v16_get(X + j, n - j)), n - j);
}

static void muon(float *p, float *m, const float *grad, int64_t rows, int64_t columns, float step_size,
                 const cry_muon *c, float *work)
{
    int high = rows > columns;
    int64_t n = high ? columns : rows, k = high ? rows : columns, size = n * k;
    int64_t whole = (size + 15) / 16 * 16, square = (n * n + 15) / 16 * 16;
    float *X = work, *out = high ? X + whole : X, *A = out + whole;
    float *squares[3] = {A + square, A + 2 * square, A + 3 * square}, *panels = A + 4 * square;
    muon_direction(X, m, grad, size, &c->momentum);
    muon_pack(panels, X, high ? columns : 1, high ? 1 : columns, k, n);
    muon_product(A, X, high ? 1 : columns, high ? columns : 1, panels, n, k);
    float *Q = muon_factor(A, squares, panels, n, c);
    if (high) {
        muon_pack(panels, Q, 1, n, n, n);
        gemm(out, columns, 0, 0, X, columns, 1, panels, rows, columns, n);
    } else { /* X is in the panels: its place is free */
        muon_pack(panels, X, columns, 1, n, columns);
        gemm(out, columns, 0, 0, Q, n, 1, panels, rows, columns, n);
    }
    v16 step = v16_set(-step_size), decay = v16_set(c->momentum.decay);
    for (int64_t j = 0; j < size; j += 16) {
        v16 kept = v16_mul(decay, v16_get(p + j, size - j));
        v16_put(p + j, v16_fma(step, v16_get(out + j, size - j), kept), size - j);
    }
}

#endif
