/* exp and log of the floats on standard input, by the table of one instruction set, in the mode in
 * which a process starts: numbers below the least normal one are kept.  argv: exp or log. */
#include <stdio.h>
#include <string.h>

#include "crystalline/kernels.h"

extern const cry_kernels TABLE;

int main(int count, char **words)
{
    static float x[4096], y[4096];
    if (count != 2) return fputs("usage: elementary exp|log\n", stderr), 2;
    size_t n;
    while ((n = fread(x, sizeof *x, 4096, stdin)) > 0) {
        (strcmp(words[1], "exp") ? TABLE.log : TABLE.exp)(y, x, (int64_t)n);
        if (fwrite(y, sizeof *y, n, stdout) != n) return 1;
    }
    return 0;
}
