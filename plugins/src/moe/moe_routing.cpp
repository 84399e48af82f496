// M2MoeRouting: weights f32[T, k] and ids i32[T, k] of the experts chosen from logits f32[T, E] and bias f32[E].
#include "moe/limits.h"
#include "plugin/creator.h"

namespace mm2c
{
namespace
{
constexpr char kTable[] = "moe_routing";

class MoeRouting : public PluginOf<MoeRouting>
{
public:
    static Signature const& declared()
    {
        static Signature const signature{"M2MoeRouting", {requiredInteger("top_k", 1, kMaxTopK)},
            {{"logits", {DataType::kFLOAT}, 2}, {"bias", {DataType::kFLOAT}, 1}},
            {{"weights", {DataType::kFLOAT}, 2}, {"ids", {DataType::kINT32}, 2}}};
        return signature;
    }

    using PluginOf::PluginOf;

protected:
    void outputShapes(DimsExprs const* in, DimsExprs* out, IExprBuilder& builder) const override
    {
        for (int i = 0; i < 2; ++i)
        {
            out[i].nbDims = 2;
            out[i].d[0] = in[0].d[0];
            out[i].d[1] = builder.constant(attributes().integer("top_k"));
        }
    }

    void check(Desc const* in, Desc const* out) const override
    {
        int64_t const tokens = in[0].dims.d[0];
        int64_t const topK = attributes().integer("top_k");
        checkRouting(in[0].dims.d[1], topK);
        expectShape(declared().inputs[1], in[1], {in[0].dims.d[1]});
        expectShape(declared().outputs[0], out[0], {tokens, topK});
        expectShape(declared().outputs[1], out[1], {tokens, topK});
    }

    size_t plan(Desc const* in, Device const& device, int tactic) override
    {
        mT = narrow("the number of tokens", in[0].dims.d[0]);
        mE = narrow("the number of experts", in[0].dims.d[1]);
        Tile const tile = chooseTile(kTable, device.imageSm, mT, tactic, anyTile);
        mImage = &chooseImage("moe_routing", device, tile.with({}));
        mGrid = {ceilDiv(mT, tile["ROWS"])};
        return 0;
    }

    void run(void const* const* in, void* const* out, char*, void* stream) const override
    {
        launch(stream, *mImage, mGrid, in[0], in[1], out[0], out[1], mT, mE, attributes().integer("top_k"));
    }

    std::vector<char const*> kernels() const override
    {
        return {"moe_routing"};
    }

    std::vector<char const*> tacticTables() const override
    {
        return {kTable};
    }

private:
    KernelImage const* mImage = nullptr;
    Grid mGrid{1};
    int32_t mT = 0;
    int32_t mE = 0;
};
} // namespace

nvinfer1::IPluginCreatorInterface* moeRoutingCreator()
{
    static Creator<MoeRouting> creator;
    return &creator;
}

} // namespace mm2c
