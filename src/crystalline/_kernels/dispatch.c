/* Which instruction set runs.  Baseline flags only, so that this file can run on any CPU. */
#include <string.h>

#include "crystalline/kernels.h"

extern const cry_kernels cry_kernels_portable;
#if defined(__x86_64__)
extern const cry_kernels cry_kernels_avx2, cry_kernels_avx512;
extern const cry_bf16_kernels cry_kernels_bf16;
#endif

/* __builtin_cpu_supports also checks that the operating system saves the wide registers. */
const cry_kernels *cry_kernels_for(const char *isa)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && (!isa || !strcmp(isa, "avx512"))) return &cry_kernels_avx512;
    if (avx2 && (!isa || !strcmp(isa, "avx2"))) return &cry_kernels_avx2;
#endif
    if (!isa || !strcmp(isa, "portable")) return &cry_kernels_portable;
    return 0;
}

const cry_bf16_kernels *cry_bf16_for(const char *isa)
{
#if defined(__x86_64__)
    const cry_kernels *kernels = cry_kernels_for(isa);
    if (kernels == &cry_kernels_avx512 && __builtin_cpu_supports("avx512bf16")) return &cry_kernels_bf16;
#else
    (void)isa;
#endif
    return 0;
}
