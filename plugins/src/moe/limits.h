// What the routing kernels hold in a block.
#pragma once

#include "refusal.h"

#include <cstdint>

namespace mm2c
{

constexpr int32_t kMaxExperts = 256;
constexpr int32_t kMaxTopK = 16;

inline void checkRouting(int64_t experts, int64_t topK)
{
    if (experts < 1 || experts > kMaxExperts)
    {
        refuse("can route among 1 to ", kMaxExperts, " experts, got ", experts);
    }
    if (topK < 1 || topK > kMaxTopK || topK > experts)
    {
        refuse("top_k must be from 1 to ", kMaxTopK, " and not above the ", experts, " experts, got ", topK);
    }
}

} // namespace mm2c
