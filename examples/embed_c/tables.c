/* A product of matrices by the serial table of each instruction set that this CPU can run: compared
 * with plain loops in double, and between the tables, which must give the same bits. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crystalline/kernels.h"

enum { M = 37, N = 53, K = 301 };

/* c(M,N) = a(M,K) b(K,N); 0 when there is no memory. */
static int multiply(const cry_kernels *k, float *c, const float *a, const float *b)
{
    int64_t count = (N + k->tile_n - 1) / k->tile_n, size = K * k->tile_n;
    float *panels = aligned_alloc(64, (size_t)(count * size + 15) / 16 * 64);
    if (!panels) return 0;
    for (int64_t p = 0; p < count; p++) {
        int64_t left = N - p * k->tile_n;
        k->pack(panels + p * size, b + p * k->tile_n, N, 1, K, left < k->tile_n ? left : k->tile_n);
    }
    k->gemm(c, N, NULL, 0, a, K, 1, panels, M, N, K);
    free(panels);
    return 1;
}

int main(void)
{
    static float a[M * K], b[K * N], c[M * N], best[M * N];
    static const char *const isas[] = {"portable", "avx2", "avx512"};
    for (int i = 0; i < M * K; i++) a[i] = (float)((i * 73 + 5) % 199 - 99) / 61.0f;
    for (int i = 0; i < K * N; i++) b[i] = (float)((i * 41 + 7) % 211 - 105) / 67.0f;
    if (!multiply(cry_kernels_for(NULL), best, a, b)) return 1;
    double worst = 0.0;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0.0, size = 0.0;
            for (int t = 0; t < K; t++) {
                sum += (double)a[i * K + t] * (double)b[t * N + j];
                size += fabs((double)a[i * K + t] * (double)b[t * N + j]);
            }
            worst = fmax(worst, fabs(sum - (double)best[i * N + j]) / size);
        }
    int good = worst < K * 0x1p-24; /* each of K fused multiply-adds rounds once */
    printf("largest error against double: %.1e of the sum's size\n", worst);
    for (int i = 0; i < 3; i++) {
        const cry_kernels *k = cry_kernels_for(isas[i]);
        if (!k) {
            printf("%s: not on this CPU\n", isas[i]);
            continue;
        }
        if (!multiply(k, c, a, b)) return 1;
        int same = memcmp(c, best, sizeof c) == 0;
        printf("%s: %s\n", k->isa, same ? "the same bits" : "DIFFERENT BITS");
        good = good && same;
    }
    return good ? 0 : 1;
}
