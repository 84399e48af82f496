// M2QkSumSquares: s f32[..., 2] = the sums of squares of q bf16[..., Q] and of k bf16[..., K] over their last axes.
#include "plugin/creator.h"
#include "plugin/row_stride.h"

namespace mm2c
{
namespace
{
constexpr char kTable[] = "qk_sum_squares";

class QkSumSquares : public PluginOf<QkSumSquares>
{
public:
    static Signature const& declared()
    {
        static Signature const signature{"M2QkSumSquares", {rowStride("q_stride"), rowStride("k_stride")},
            {{"q", {DataType::kBF16}}, {"k", {DataType::kBF16}}}, {{"s", {DataType::kFLOAT}}}};
        return signature;
    }

    using PluginOf::PluginOf;

protected:
    void outputShapes(DimsExprs const* in, DimsExprs* out, IExprBuilder& builder) const override
    {
        out[0] = in[0];
        out[0].d[out[0].nbDims - 1] = builder.constant(2);
    }

    void check(Desc const* in, Desc const* out) const override
    {
        std::vector<int64_t> shape(in[0].dims.d, in[0].dims.d + in[0].dims.nbDims);
        shape.back() = -1;
        expectShape(declared().inputs[1], in[1], shape);
        shape.back() = 2;
        expectShape(declared().outputs[0], out[0], shape);
        expectMultiple("the width of q", lastDim(in[0]), 16);
        expectMultiple("the width of k", lastDim(in[1]), 16);
        takeStride(attributes(), "q_stride", lastDim(in[0]));
        takeStride(attributes(), "k_stride", lastDim(in[1]));
    }

    size_t plan(Desc const* in, Device const& device, int tactic) override
    {
        int64_t const tokens = rows(in[0]);
        mQWidth = narrow("the width of q", lastDim(in[0]));
        mKWidth = narrow("the width of k", lastDim(in[1]));
        mQStride = takeStride(attributes(), "q_stride", mQWidth);
        mKStride = takeStride(attributes(), "k_stride", mKWidth);
        Tile const tile = chooseTile(kTable, device.imageSm, tokens, tactic, anyTile);
        mImage = &chooseImage("qk_sum_squares", device, tile.with({}));
        mGrid = {tokens};
        return 0;
    }

    void run(void const* const* in, void* const* out, char*, void* stream) const override
    {
        launch(stream, *mImage, mGrid, in[0], in[1], out[0], mQWidth, mKWidth, mQStride, mKStride);
    }

    std::vector<char const*> kernels() const override
    {
        return {"qk_sum_squares"};
    }

    std::vector<char const*> tacticTables() const override
    {
        return {kTable};
    }

private:
    KernelImage const* mImage = nullptr;
    Grid mGrid{1};
    int32_t mQWidth = 0;
    int32_t mKWidth = 0;
    int32_t mQStride = 0;
    int32_t mKStride = 0;
};
} // namespace

nvinfer1::IPluginCreatorInterface* qkSumSquaresCreator()
{
    static Creator<QkSumSquares> creator;
    return &creator;
}

} // namespace mm2c
