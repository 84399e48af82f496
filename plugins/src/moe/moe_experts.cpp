// The chosen experts: M2MoeExpertsFp8 and M2MoeExpertsBf16 with given weights and ids, M2MoeFp8 and M2MoeBf16 with the
// routing as part of them. w13 [E, 2I, C] holds gate then up rows, w2 [E, C, I]; y bf16 like x. block_n and block_k are
// the sides of w13's scale blocks, along I and along C; w2's are the same turned: block_k rows by block_n columns.
#include "moe/experts_plan.h"
#include "moe/limits.h"
#include "plugin/creator.h"
#include "plugin/scale_blocks.h"

namespace mm2c
{
namespace
{
constexpr int64_t kWidthUnit = 64; // the smallest step of the kernels

template <bool Routed, bool Scaled>
class MoeExperts : public PluginOf<MoeExperts<Routed, Scaled>>
{
    using Base = PluginOf<MoeExperts<Routed, Scaled>>;
    static constexpr int kW13 = 3;
    static constexpr int kW13Scale = 4;
    static constexpr int kW2 = Scaled ? 5 : 4;
    static constexpr int kW2Scale = 6;

public:
    static Signature const& declared()
    {
        static Signature const signature = declare();
        return signature;
    }

    explicit MoeExperts(Attributes const& attributes)
        : Base(attributes)
        , mFirstExpert(attributes.integer("first_expert"))
    {
        if constexpr (Scaled)
        {
            ScaleBlocks const blocks(attributes);
            mInnerBlock = blocks.n;
            mWidthBlock = blocks.k;
        }
    }

protected:
    void outputShapes(DimsExprs const* in, DimsExprs* out, IExprBuilder&) const override
    {
        out[0] = in[0];
    }

    void check(Desc const* in, Desc const* out) const override
    {
        auto const& inputs = declared().inputs;
        ExpertsProblem const p = problem(in);
        int64_t const tokens = p.tokens;
        expectMultiple("the width of x", p.width, kWidthUnit);
        expectMultiple("the experts' width", p.intermediate, kWidthUnit);
        if (p.localExperts < 1 || p.firstExpert + p.localExperts > kMaxExperts)
        {
            refuse("holds experts ", p.firstExpert, " to ", p.firstExpert + p.localExperts - 1,
                ", must be within 0 to ", kMaxExperts - 1);
        }
        if (Routed)
        {
            checkRouting(p.experts, p.topK);
            expectShape(inputs[1], in[1], {tokens, p.experts});
            expectShape(inputs[2], in[2], {p.experts});
            if (p.firstExpert + p.localExperts > p.experts)
            {
                refuse("logits are for ", p.experts, " experts, the weights reach to ", p.firstExpert + p.localExperts);
            }
        }
        else
        {
            checkRouting(kMaxExperts, p.topK);
            expectShape(inputs[1], in[1], {tokens, p.topK});
            expectShape(inputs[2], in[2], {tokens, p.topK});
        }
        int64_t const experts = p.localExperts;
        expectShape(inputs[kW13], in[kW13], {experts, int64_t{2} * p.intermediate, p.width});
        expectShape(inputs[kW2], in[kW2], {experts, p.width, p.intermediate});
        if constexpr (Scaled)
        {
            ScaleBlocks const blocks(this->attributes());
            expectShape(inputs[kW13Scale], in[kW13Scale],
                {experts, 2 * blocks.rows(p.intermediate), blocks.columns(p.width)});
            expectShape(
                inputs[kW2Scale], in[kW2Scale], {experts, blocks.columns(p.width), blocks.rows(p.intermediate)});
        }
        std::vector<int64_t> const shape(in[0].dims.d, in[0].dims.d + in[0].dims.nbDims);
        expectShape(declared().outputs[0], out[0], shape);
    }

    size_t workspaceBytes(Desc const* in, Device const& device) const override
    {
        return ExpertsPlan::workspaceBytes(problem(in), device);
    }

    size_t plan(Desc const* in, Device const& device, int tactic) override
    {
        return mPlan.make(problem(in), device, tactic);
    }

    void run(void const* const* in, void* const* out, char* workspace, void* stream) const override
    {
        ExpertsTensors tensors{};
        tensors.x = in[0];
        (Routed ? tensors.logits : tensors.weights) = in[1];
        (Routed ? tensors.bias : tensors.ids) = in[2];
        tensors.w13 = in[kW13];
        tensors.w2 = in[kW2];
        tensors.w13Scale = Scaled ? in[kW13Scale] : nullptr;
        tensors.w2Scale = Scaled ? in[kW2Scale] : nullptr;
        tensors.out = out[0];
        mPlan.run(tensors, workspace, stream);
    }

    std::vector<char const*> kernels() const override
    {
        return ExpertsPlan::kernels();
    }

    std::vector<char const*> tacticTables() const override
    {
        return ExpertsPlan::tacticTables();
    }

private:
    static Signature declare()
    {
        Signature s{Routed ? (Scaled ? "M2MoeFp8" : "M2MoeBf16") : (Scaled ? "M2MoeExpertsFp8" : "M2MoeExpertsBf16"),
            {requiredInteger("first_expert", 0, kMaxExperts - 1)}, {{"x", {DataType::kBF16}}},
            {{"y", {DataType::kBF16}}}};
        if (Routed)
        {
            s.attributes.insert(s.attributes.begin(), requiredInteger("top_k", 1, kMaxTopK));
            s.inputs.push_back({"logits", {DataType::kFLOAT}, 2});
            s.inputs.push_back({"bias", {DataType::kFLOAT}, 1});
        }
        else
        {
            s.inputs.push_back({"weights", {DataType::kFLOAT}, 2});
            s.inputs.push_back({"ids", {DataType::kINT32}, 2});
        }
        DataType const weight = Scaled ? DataType::kFP8 : DataType::kBF16;
        for (auto const& [name, scale] : {std::pair{"w13", "w13_scale"}, std::pair{"w2", "w2_scale"}})
        {
            s.inputs.push_back({name, {weight}, 3});
            if (Scaled)
            {
                s.inputs.push_back({scale, {DataType::kFLOAT}, 3});
            }
        }
        if (Scaled)
        {
            for (AttributeSpec const& spec : scaleBlockAttributes())
            {
                s.attributes.push_back(spec);
            }
        }
        return s;
    }

    ExpertsProblem problem(Desc const* in) const
    {
        ExpertsProblem p{};
        p.routed = Routed;
        p.scaled = Scaled;
        p.tokens = narrow("the number of tokens", rows(in[0]));
        p.width = narrow("the width of x", lastDim(in[0]));
        p.intermediate = narrow("the experts' width", in[kW2].dims.d[2]);
        p.topK = Routed ? this->attributes().integer("top_k") : narrow("top_k", in[2].dims.d[1]);
        p.experts = Routed ? narrow("the number of experts", in[1].dims.d[1]) : kMaxExperts;
        p.firstExpert = mFirstExpert;
        p.localExperts = narrow("the number of experts", in[kW13].dims.d[0]);
        p.innerBlock = mInnerBlock;
        p.widthBlock = mWidthBlock;
        return p;
    }

    int32_t mFirstExpert;
    int32_t mInnerBlock = 128; // unscaled weights: any that the kernels accept
    int32_t mWidthBlock = 128;
    ExpertsPlan mPlan;
};
} // namespace

nvinfer1::IPluginCreatorInterface* moeExpertsFp8Creator()
{
    static Creator<MoeExperts<false, true>> creator;
    return &creator;
}

nvinfer1::IPluginCreatorInterface* moeExpertsBf16Creator()
{
    static Creator<MoeExperts<false, false>> creator;
    return &creator;
}

nvinfer1::IPluginCreatorInterface* moeFp8Creator()
{
    static Creator<MoeExperts<true, true>> creator;
    return &creator;
}

nvinfer1::IPluginCreatorInterface* moeBf16Creator()
{
    static Creator<MoeExperts<true, false>> creator;
    return &creator;
}

} // namespace mm2c
