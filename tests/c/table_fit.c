/* What cry_kernels_fit says of tables of this version and of others. */
#include <stdio.h>

#include "crystalline/kernels.h"

int main(void)
{
    int64_t size = sizeof(cry_kernels);
    cry_kernels same = {.abi = CRY_KERNELS_ABI, .size = size}, longer = same, shorter = same;
    cry_kernels other = same;
    longer.size += 8;
    shorter.size -= 8;
    other.abi++;
    printf("same %d, longer %d, shorter %d, other abi %d\n", cry_kernels_fit(&same),
           cry_kernels_fit(&longer), cry_kernels_fit(&shorter), cry_kernels_fit(&other));
    return 0;
}
