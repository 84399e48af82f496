// What M2PagedAttention is asked to do, and its limits.
#pragma once

#include <cstdint>

namespace mm2c
{

constexpr int32_t kHeadDim = 128;
constexpr int32_t kRotaryDim = 64;
constexpr int32_t kMaxGroup = 16;  // query heads of a KV head
constexpr int32_t kMaxSplits = 64; // that attention_merge joins

struct AttentionProblem
{
    int32_t rows;        // B
    int32_t queries;     // S of each row
    int32_t heads;       // HQ
    int32_t kvHeads;     // HK
    int32_t tablePages;  // M, columns of the block table
    int32_t pages;       // of the cache
    int32_t pageSize;
    int32_t positions;   // P of cos and sin
    bool e4m3Cache;
    int32_t qStride;
    int32_t kStride;
    int32_t vStride;
    float qTotal;
    float kTotal;
    float eps;
    float scale;
};

} // namespace mm2c
