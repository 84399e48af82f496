// The launches of M2PagedAttention: rope_kv, then attention_decode (and attention_merge) for one query a row or
// attention_prefill for several.
#pragma once

#include "attention/attention_problem.h"
#include "launcher/device.h"
#include "launcher/launch.h"

#include <cstddef>
#include <vector>

namespace mm2c
{

// Device memory, in the order of the op's inputs.
struct AttentionTensors
{
    void const* q;
    void const* k;
    void const* v;
    void const* s;
    void const* qWeight;
    void const* kWeight;
    void const* cos;
    void const* sin;
    void const* pastLen;
    void const* newLen;
    void const* blockTable;
    void* kCache;
    void* vCache;
    void* out;
};

class AttentionPlan
{
public:
    // Makes the plan and gives the bytes of workspace it uses. Tactics: the rows of the tables in tacticTables().
    size_t make(AttentionProblem const& problem, Device const& device, int tactic);
    void run(AttentionTensors const& tensors, char* workspace, void* stream) const;

    // Bytes that serve this many rows and queries or fewer.
    static size_t workspaceBytes(AttentionProblem const& problem, Device const& device);

    static std::vector<char const*> kernels();
    static std::vector<char const*> tacticTables();

private:
    struct Slices
    {
        size_t rotated; // q normed and rotated
        size_t part;
        size_t lse;
        size_t bytes;
    };
    struct Step
    {
        KernelImage const* image = nullptr;
        Grid grid{1};
    };
    static Slices slices(AttentionProblem const& problem, int64_t parts);

    AttentionProblem mProblem{};
    Slices mSlices{};
    int32_t mSplits = 1;
    Step mRope;
    Step mAttend;
    Step mMerge;
};

} // namespace mm2c
