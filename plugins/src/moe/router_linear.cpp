// M2RouterLinear: logits f32[..., E] = x bf16[..., C] · w[E, C]ᵀ, w in bf16 or f32.
#include "plugin/creator.h"

namespace mm2c
{
namespace
{
constexpr char kTable[] = "gate_linear";

class RouterLinear : public PluginOf<RouterLinear>
{
public:
    static Signature const& declared()
    {
        static Signature const signature{"M2RouterLinear", {},
            {{"x", {DataType::kBF16}}, {"w", {DataType::kBF16, DataType::kFLOAT}, 2}},
            {{"logits", {DataType::kFLOAT}}}};
        return signature;
    }

    using PluginOf::PluginOf;

protected:
    void outputShapes(DimsExprs const* in, DimsExprs* out, IExprBuilder&) const override
    {
        out[0] = in[0];
        out[0].d[out[0].nbDims - 1] = in[1].d[0];
    }

    void check(Desc const* in, Desc const* out) const override
    {
        int64_t const width = lastDim(in[0]);
        expectMultiple("the width of x", width, 16);
        expectShape(declared().inputs[1], in[1], {-1, width});
        std::vector<int64_t> result(in[0].dims.d, in[0].dims.d + in[0].dims.nbDims);
        result.back() = in[1].dims.d[0];
        expectShape(declared().outputs[0], out[0], result);
    }

    size_t plan(Desc const* in, Device const& device, int tactic) override
    {
        mT = narrow("the number of tokens", rows(in[0]));
        mC = narrow("the width of x", lastDim(in[0]));
        mE = narrow("the height of w", in[1].dims.d[0]);
        Tile const tile = chooseTile(kTable, device.imageSm, mT, tactic, anyTile);
        int const f32 = in[1].type == DataType::kFLOAT ? 1 : 0;
        mImage = &chooseImage("gate_linear", device, tile.with({{"F32", f32}}));
        mGrid = {ceilDiv(mE, tile["BE"]), ceilDiv(mT, tile["BM"])};
        return 0;
    }

    void run(void const* const* in, void* const* out, char*, void* stream) const override
    {
        launch(stream, *mImage, mGrid, in[0], in[1], out[0], mT, mC, mE);
    }

    std::vector<char const*> kernels() const override
    {
        return {"gate_linear"};
    }

    std::vector<char const*> tacticTables() const override
    {
        return {kTable};
    }

private:
    KernelImage const* mImage = nullptr;
    Grid mGrid{1};
    int32_t mT = 0;
    int32_t mC = 0;
    int32_t mE = 0;
};
} // namespace

nvinfer1::IPluginCreatorInterface* routerLinearCreator()
{
    static Creator<RouterLinear> creator;
    return &creator;
}

} // namespace mm2c
