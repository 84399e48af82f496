// How the chosen experts of T tokens are computed: which kernels, with which grids, over which workspace.
#pragma once

#include "launcher/device.h"
#include "launcher/launch.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mm2c
{

struct ExpertsProblem
{
    bool routed; // logits and bias are given, not weights and ids
    bool scaled; // weights are block-scaled e4m3, else bf16
    int32_t tokens;
    int32_t width;        // C
    int32_t intermediate; // I
    int32_t topK;
    int32_t experts;      // of the whole model where routed
    int32_t firstExpert;
    int32_t localExperts;
    int32_t innerBlock; // entries along I that share a scale: w13's rows, w2's columns
    int32_t widthBlock; // along C: w13's columns, w2's rows
};

// Device memory. Where routed, weights and ids come from the workspace; scales are null where the weights have none.
struct ExpertsTensors
{
    void const* x;
    void const* logits;
    void const* bias;
    void const* weights;
    void const* ids;
    void const* w13;
    void const* w13Scale;
    void const* w2;
    void const* w2Scale;
    void* out;
};

// Three ways, by the number of tokens: very few tokens take a matrix-vector product for each pair of token and slot
// (2 launches); few are routed and grouped by expert in one block; many in several kernels over many blocks.
class ExpertsPlan
{
public:
    // Makes the plan and gives the bytes of workspace it uses. Tactics: the rows of the tables in tacticTables().
    size_t make(ExpertsProblem const& problem, Device const& device, int tactic);
    void run(ExpertsTensors const& tensors, char* workspace, void* stream) const;

    // Bytes that serve this many tokens or fewer with any tactic.
    static size_t workspaceBytes(ExpertsProblem const& problem, Device const& device);

    static std::vector<char const*> kernels();
    static std::vector<char const*> tacticTables();

private:
    enum class Way
    {
        kSmall,
        kOneBlock,
        kManyBlocks
    };
    // Offsets of the workspace's slices.
    struct Slices
    {
        size_t weights;
        size_t ids;
        size_t h;
        size_t y;
        size_t order;
        size_t tileExpert;
        size_t tileRow;
        size_t tileEnd;
        size_t counts;
        size_t bytes;
    };
    struct Step
    {
        KernelImage const* image = nullptr;
        Grid grid{1};
    };
    static Slices slices(ExpertsProblem const& problem, int64_t tiles, int64_t chunks);
    void makeSmall(Device const& device, int tactic);
    void makeGrouped(Device const& device, int tactic);
    void makeGrouping(Device const& device, int tileRows);
    void group(ExpertsTensors const& tensors, char* workspace, void* stream) const;

    ExpertsProblem mProblem{};
    Way mWay = Way::kSmall;
    Slices mSlices{};
    int32_t mPairs = 0;
    int32_t mTiles = 0;
    int32_t mChunks = 0;
    Step mRoute; // one block: routing and grouping together
    Step mCount;
    Step mOffsets;
    Step mScatter;
    Step mGateUp;
    Step mDown;
    Step mCombine;
};

} // namespace mm2c
