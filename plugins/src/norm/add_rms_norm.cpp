// M2AddRmsNorm: total = x + residual, y = weight · (total / rms(total)); bf16[..., C], weight bf16[C].
#include "plugin/creator.h"

namespace mm2c
{
namespace
{
constexpr char kTable[] = "add_rms_norm";

class AddRmsNorm : public PluginOf<AddRmsNorm>
{
public:
    static Signature const& declared()
    {
        static Signature const signature{"M2AddRmsNorm", {requiredReal("eps", 0.0F, 1.0F)},
            {{"x", {DataType::kBF16}}, {"residual", {DataType::kBF16}}, {"weight", {DataType::kBF16}, 1}},
            {{"y", {DataType::kBF16}}, {"total", {DataType::kBF16}}}};
        return signature;
    }

    using PluginOf::PluginOf;

protected:
    void outputShapes(DimsExprs const* in, DimsExprs* out, IExprBuilder&) const override
    {
        out[0] = in[0];
        out[1] = in[0];
    }

    void check(Desc const* in, Desc const* out) const override
    {
        std::vector<int64_t> const shape(in[0].dims.d, in[0].dims.d + in[0].dims.nbDims);
        expectMultiple("the width of x", lastDim(in[0]), 16);
        expectShape(declared().inputs[1], in[1], shape);
        expectShape(declared().inputs[2], in[2], {shape.back()});
        expectShape(declared().outputs[0], out[0], shape);
        expectShape(declared().outputs[1], out[1], shape);
    }

    size_t plan(Desc const* in, Device const& device, int tactic) override
    {
        int64_t const tokens = rows(in[0]);
        mC = narrow("the width of x", lastDim(in[0]));
        auto const suits = [&](Tile const& tile) { return mC <= tile["BLOCK"]; };
        Tile const tile = chooseTile(kTable, device.imageSm, tokens, tactic, suits);
        mImage = &chooseImage("add_rms_norm", device, tile.with({{"RESIDUAL", 1}}));
        mGrid = {tokens};
        return 0;
    }

    void run(void const* const* in, void* const* out, char*, void* stream) const override
    {
        launch(stream, *mImage, mGrid, in[0], in[1], in[2], out[0], out[1], mC, attributes().real("eps"));
    }

    std::vector<char const*> kernels() const override
    {
        return {"add_rms_norm"};
    }

    std::vector<char const*> tacticTables() const override
    {
        return {kTable};
    }

private:
    KernelImage const* mImage = nullptr;
    Grid mGrid{1};
    int32_t mC = 0;
};
} // namespace

nvinfer1::IPluginCreatorInterface* addRmsNormCreator()
{
    static Creator<AddRmsNorm> creator;
    return &creator;
}

} // namespace mm2c
