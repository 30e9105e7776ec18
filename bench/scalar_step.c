/* What plain C loops do, one multiply and one add at a time, on the products of a training step.
 *
 *     scalar_step ROWS  N K TIMES  [N K TIMES ...]     prints two numbers: seconds, GFLOP
 *
 * For each weight (N, K), used TIMES over: y = x W^T, dx = dy W, dW = dy^T x, on ROWS tokens.
 * Compiled without vectorization and without contraction to fma; the loops are in the order in
 * which one would write them with memory in mind, so that the innermost one runs along rows. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* one thread that never waits */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Four sums: one alone would wait for each addition, which any programmer would notice. */
static void forward(float *y, const float *x, const float *w, int64_t R, int64_t N, int64_t K)
{
    for (int64_t r = 0; r < R; r++)
        for (int64_t n = 0; n < N; n++) {
            const float *a = x + r * K, *b = w + n * K;
            float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
            int64_t k = 0;
            for (; k + 4 <= K; k += 4) {
                s0 += a[k] * b[k];
                s1 += a[k + 1] * b[k + 1];
                s2 += a[k + 2] * b[k + 2];
                s3 += a[k + 3] * b[k + 3];
            }
            for (; k < K; k++)
                s0 += a[k] * b[k];
            y[r * N + n] = (s0 + s1) + (s2 + s3);
        }
}

static void to_input(float *dx, const float *dy, const float *w, int64_t R, int64_t N, int64_t K)
{
    for (int64_t r = 0; r < R; r++)
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < K; k++)
                dx[r * K + k] += dy[r * N + n] * w[n * K + k];
}

static void to_weight(float *dw, const float *dy, const float *x, int64_t R, int64_t N, int64_t K)
{
    for (int64_t n = 0; n < N; n++)
        for (int64_t r = 0; r < R; r++)
            for (int64_t k = 0; k < K; k++)
                dw[n * K + k] += dy[r * N + n] * x[r * K + k];
}

static float *values(int64_t n)
{
    float *a = malloc((size_t)n * sizeof *a);
    if (!a)
        exit(3);
    for (int64_t i = 0; i < n; i++)
        a[i] = 0.001f * (float)(i % 1000);
    return a;
}

int main(int argc, char **argv)
{
    if (argc < 5 || (argc - 2) % 3) {
        fprintf(stderr, "usage: scalar_step ROWS N K TIMES [N K TIMES ...]\n");
        return 2;
    }
    const int64_t R = atoll(argv[1]);
    double seconds = 0, flop = 0;
    for (int i = 2; i < argc; i += 3) {
        const int64_t N = atoll(argv[i]), K = atoll(argv[i + 1]), times = atoll(argv[i + 2]);
        float *x = values(R * K), *w = values(N * K), *y = values(R * N);
        float *dx = values(R * K), *dw = values(N * K);
        const double begun = now();
        forward(y, x, w, R, N, K);
        to_input(dx, y, w, R, N, K);
        to_weight(dw, y, x, R, N, K);
        seconds += (double)times * (now() - begun);
        flop += 6.0 * (double)(times * R * N * K);
        free(x), free(w), free(y), free(dx), free(dw);
    }
    printf("%.9g %.9g\n", seconds, 1e-9 * flop);
    return 0;
}
