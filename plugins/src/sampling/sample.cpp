// M2Sample: a token for each row of logits f32[R, V]. status: 0, 1 a logit was not finite, 2 no token is allowed.
#include "plugin/creator.h"
#include "plugin/workspace.h"

#include <algorithm>
#include <climits>

namespace mm2c
{
namespace
{
constexpr char kChunkTable[] = "sample_chunks";
constexpr char kPickTable[] = "sample_pick";
constexpr int kCandidates = 64; // of a chunk, and the most that top_k keeps
enum Input
{
    kLogits,
    kMask,
    kTemperature,
    kTopK,
    kTopP,
    kMinP,
    kUniform
};

class Sample : public PluginOf<Sample>
{
public:
    static Signature const& declared()
    {
        constexpr DataType f32 = DataType::kFLOAT;
        constexpr DataType i32 = DataType::kINT32;
        static Signature const signature{"M2Sample",
            {optionalInteger("greedy", 0, 0, 1), optionalInteger("use_mask", 0, 0, 1)},
            {{"logits", {f32}, 2}, {"mask", {i32}, 2}, {"temperature", {f32}, 1}, {"top_k", {i32}, 1},
                {"top_p", {f32}, 1}, {"min_p", {f32}, 1}, {"uniform", {DataType::kINT64}, 1}},
            {{"tokens", {i32}, 1}, {"status", {i32}, 1}}};
        return signature;
    }

    explicit Sample(Attributes const& attributes)
        : PluginOf(attributes)
        , mUseMask(attributes.integer("use_mask"))
        , mCandidates(attributes.integer("greedy") != 0 ? 1 : kCandidates)
    {
    }

protected:
    void outputShapes(DimsExprs const* in, DimsExprs* out, IExprBuilder&) const override
    {
        for (int i = 0; i < 2; ++i)
        {
            out[i].nbDims = 1;
            out[i].d[0] = in[kLogits].d[0];
        }
    }

    void check(Desc const* in, Desc const* out) const override
    {
        int64_t const rows = in[kLogits].dims.d[0];
        int64_t const vocabulary = in[kLogits].dims.d[1];
        if (vocabulary < 1)
        {
            refuse("there are no logits");
        }
        if (mUseMask != 0)
        {
            expectShape(declared().inputs[kMask], in[kMask], {rows, ceilDiv(vocabulary, 32)});
        }
        for (size_t i = kTemperature; i <= kUniform; ++i)
        {
            expectShape(declared().inputs[i], in[i], {rows});
        }
        expectShape(declared().outputs[0], out[0], {rows});
        expectShape(declared().outputs[1], out[1], {rows});
    }

    size_t workspaceBytes(Desc const* in, Device const& device) const override
    {
        int smallest = INT_MAX;
        for (Tile const& tile : tiles(kChunkTable, device.imageSm))
        {
            smallest = std::min(smallest, suits(tile) ? tile["CHUNK"] : INT_MAX);
        }
        return slices(in[kLogits].dims.d[0], ceilDiv(in[kLogits].dims.d[1], smallest)).bytes;
    }

    size_t plan(Desc const* in, Device const& device, int tactic) override
    {
        int const sm = device.imageSm;
        int64_t const rows = in[kLogits].dims.d[0];
        mV = narrow("the vocabulary", in[kLogits].dims.d[1]);
        mW = narrow("the width of mask", in[kMask].dims.d[1]);
        auto const ours = [&](Tile const& tile) { return suits(tile); };
        Tile const chunks = chooseTile(kChunkTable, sm, rows, tactic, ours);
        mP = narrow("the number of chunks", ceilDiv(mV, chunks["CHUNK"]));
        mChunks = &chooseImage("sample_chunks", device, chunks.with({}));
        mChunkGrid = {mP, rows};
        mPick = &chooseImage("sample_pick", device, chooseTile(kPickTable, sm, rows, 0, ours).with({}));
        mPickGrid = {rows};
        mSlices = slices(rows, mP);
        return mSlices.bytes;
    }

    void run(void const* const* in, void* const* out, char* workspace, void* stream) const override
    {
        char* const keys = workspace + mSlices.keys;
        char* const flags = workspace + mSlices.flags;
        void const* const mask = mUseMask != 0 ? in[kMask] : in[kLogits]; // not read without use_mask
        launch(stream, *mChunks, mChunkGrid, in[kLogits], mask, keys, flags, mV, mW, mUseMask);
        launch(stream, *mPick, mPickGrid, keys, flags, in[kTemperature], in[kTopK], in[kTopP], in[kMinP],
            in[kUniform], out[0], out[1], mP);
    }

    std::vector<char const*> kernels() const override
    {
        return {"sample_chunks", "sample_pick"};
    }

    std::vector<char const*> tacticTables() const override
    {
        return {kChunkTable};
    }

private:
    struct Slices
    {
        size_t keys;
        size_t flags;
        size_t bytes;
    };

    bool suits(Tile const& tile) const
    {
        return tile["KC"] == mCandidates;
    }

    Slices slices(int64_t rows, int64_t chunks) const
    {
        WorkspaceLayout layout;
        Slices s{};
        s.keys = layout.take(rows * chunks * mCandidates, sizeof(int64_t));
        s.flags = layout.take(rows * chunks, sizeof(int32_t));
        s.bytes = layout.bytes();
        return s;
    }

    int32_t mUseMask;
    int32_t mCandidates;
    KernelImage const* mChunks = nullptr;
    KernelImage const* mPick = nullptr;
    Grid mChunkGrid{1};
    Grid mPickGrid{1};
    Slices mSlices{};
    int32_t mV = 0;
    int32_t mW = 0;
    int32_t mP = 0;
};
} // namespace

nvinfer1::IPluginCreatorInterface* sampleCreator()
{
    static Creator<Sample> creator;
    return &creator;
}

} // namespace mm2c
