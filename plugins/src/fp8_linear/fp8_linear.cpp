// M2Fp8Linear: y bf16[..., N] = x bf16[..., K] · (w e4m3[N, K] × scale)ᵀ.
#include "plugin/creator.h"
#include "plugin/scale_blocks.h"

#include <algorithm>

namespace mm2c
{
namespace
{
constexpr char kTable[] = "fp8_linear";

class Fp8Linear : public PluginOf<Fp8Linear>
{
public:
    static Signature const& declared()
    {
        static Signature const signature{"M2Fp8Linear", scaleBlockAttributes(),
            {{"x", {DataType::kBF16}}, {"w", {DataType::kFP8}, 2}, {"scale", {DataType::kFLOAT}, 2}},
            {{"y", {DataType::kBF16}}}};
        return signature;
    }

    explicit Fp8Linear(Attributes const& attributes)
        : PluginOf(attributes)
        , mBlocks(attributes)
    {
    }

protected:
    void outputShapes(DimsExprs const* in, DimsExprs* out, IExprBuilder&) const override
    {
        out[0] = in[0];
        out[0].d[out[0].nbDims - 1] = in[1].d[0];
    }

    void check(Desc const* in, Desc const* out) const override
    {
        int64_t const width = lastDim(in[0]);
        int64_t const height = in[1].dims.d[0];
        expectMultiple("the width of x", width, 64);
        expectMultiple("the height of w", height, 16);
        expectShape(declared().inputs[1], in[1], {height, width});
        expectShape(declared().inputs[2], in[2], {mBlocks.rows(height), mBlocks.columns(width)});
        std::vector<int64_t> result(in[0].dims.d, in[0].dims.d + in[0].dims.nbDims);
        result.back() = height;
        expectShape(declared().outputs[0], out[0], result);
    }

    size_t workspaceBytes(Desc const* in, Device const& device) const override
    {
        int64_t most = 0;
        for (Tile const& tile : tiles(kTable, device.imageSm))
        {
            int64_t const tokens = std::min<int64_t>(rows(in[0]), tile.row->max_tokens);
            most = std::max(most, partialBytes(tile["SPLIT"], tokens, in[1].dims.d[0]));
        }
        return static_cast<size_t>(most);
    }

    size_t plan(Desc const* in, Device const& device, int tactic) override
    {
        mT = narrow("the number of tokens", rows(in[0]));
        mN = narrow("the height of w", in[1].dims.d[0]);
        mK = narrow("the width of x", lastDim(in[0]));
        auto const suits = [&](Tile const& tile) {
            bool const rowsShareScales = tile["GEMV"] == 0 || mBlocks.n % tile["BN"] == 0;
            return rowsShareScales && mK % tile["BK"] == 0 && mBlocks.k % tile["BK"] == 0;
        };
        Tile const tile = chooseTile(kTable, device.imageSm, mT, tactic, suits);
        mImage = &chooseImage("fp8_linear", device, tile.with({}));
        mSplits = tile["SPLIT"];
        mGrid = {ceilDiv(mN, tile["BN"]), ceilDiv(mT, tile["BM"]), mSplits};
        if (mSplits == 1)
        {
            return 0;
        }
        Tile const sum = chooseTile("split_sum", device.imageSm, mT, 0, anyTile);
        mSumImage = &chooseImage("split_sum", device, sum.with({}));
        mCount = narrow("the number of outputs", int64_t{mT} * mN);
        mSumGrid = {ceilDiv(mCount, sum["BLOCK"])};
        return static_cast<size_t>(partialBytes(mSplits, mT, mN));
    }

    void run(void const* const* in, void* const* out, char* workspace, void* stream) const override
    {
        launch(stream, *mImage, mGrid, in[0], in[1], in[2], out[0], workspace, mT, mN, mK, mBlocks.n, mBlocks.k);
        if (mSplits > 1)
        {
            launch(stream, *mSumImage, mSumGrid, workspace, out[0], mCount, mSplits);
        }
    }

    std::vector<char const*> kernels() const override
    {
        return {"fp8_linear", "split_sum"};
    }

    std::vector<char const*> tacticTables() const override
    {
        return {kTable};
    }

private:
    static int64_t partialBytes(int64_t splits, int64_t tokens, int64_t height)
    {
        return splits == 1 ? 0 : splits * tokens * height * static_cast<int64_t>(sizeof(float));
    }

    ScaleBlocks mBlocks;
    KernelImage const* mImage = nullptr;
    KernelImage const* mSumImage = nullptr;
    Grid mGrid{1};
    Grid mSumGrid{1};
    int32_t mT = 0;
    int32_t mN = 0;
    int32_t mK = 0;
    int32_t mSplits = 1;
    int32_t mCount = 0;
};
} // namespace

nvinfer1::IPluginCreatorInterface* fp8LinearCreator()
{
    static Creator<Fp8Linear> creator;
    return &creator;
}

} // namespace mm2c
