/* The 12 groups of a sum over tokens, and their places in the fixed tree. */
#include "tasks.h"

int cry_groups_ok(const int64_t *groups, int64_t rows)
{
    for (int g = 0; g < CRY_GROUPS; g++)
        if (groups[g] > groups[g + 1]) return 0;
    return groups[0] == 0 && groups[CRY_GROUPS] == rows;
}

int cry_branches(cry_branch branches[CRY_GROUPS], const int64_t *groups, int accumulate)
{
    int count = 0, total_begun = accumulate;
    for (int third = 0; third < CRY_GROUPS; third += 3) {
        int first = count;
        for (int g = third; g < third + 3; g++) {
            if (groups[g] == groups[g + 1]) continue;
            branches[count] = (cry_branch){.begin = groups[g], .end = groups[g + 1],
                                           .first_in_q = count == first,
                                           .at = groups[g]};
            count++;
        }
        if (count == first) continue;
        branches[count - 1].last_in_q = 1;
        branches[count - 1].starts_total = !total_begun;
        total_begun = 1;
    }
    return count;
}
