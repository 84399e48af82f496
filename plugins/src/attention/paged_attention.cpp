// M2PagedAttention: norm and rotation of q and k, k and v written into their pages in place, attention over the pages.
#include "attention/attention_plan.h"
#include "plugin/creator.h"
#include "plugin/row_stride.h"

namespace mm2c
{
namespace
{
enum Input
{
    kQ,
    kK,
    kV,
    kS,
    kQWeight,
    kKWeight,
    kCos,
    kSin,
    kPastLen,
    kNewLen,
    kBlockTable,
    kKCache,
    kVCache
};

class PagedAttention : public PluginOf<PagedAttention>
{
public:
    static Signature const& declared()
    {
        constexpr DataType bf16 = DataType::kBF16;
        constexpr DataType f32 = DataType::kFLOAT;
        constexpr DataType i32 = DataType::kINT32;
        static Signature const signature{"M2PagedAttention",
            {requiredInteger("heads", 1, 65536), requiredInteger("kv_heads", 1, 65536),
                requiredInteger("head_dim", kHeadDim, kHeadDim), requiredInteger("rotary_dim", kRotaryDim, kRotaryDim),
                requiredReal("eps", 0.0F, 1.0F), requiredReal("scale", 1e-6F, 1e6F),
                requiredInteger("q_total", 1, INT32_MAX), requiredInteger("k_total", 1, INT32_MAX),
                rowStride("q_stride"), rowStride("k_stride"), rowStride("v_stride")},
            {{"q", {bf16}, 3}, {"k", {bf16}, 3}, {"v", {bf16}, 3}, {"s", {f32}, 3}, {"q_weight", {bf16}, 1},
                {"k_weight", {bf16}, 1}, {"cos", {f32}, 2}, {"sin", {f32}, 2}, {"past_len", {i32}, 1},
                {"new_len", {i32}, 1}, {"block_table", {i32}, 2}, {"k_cache", {bf16, DataType::kFP8}, 4},
                {"v_cache", {bf16, DataType::kFP8}, 4, kKCache}},
            {{"out", {bf16}, 3}, {"k_cache_out", {bf16, DataType::kFP8}, 4, kKCache},
                {"v_cache_out", {bf16, DataType::kFP8}, 4, kVCache}}};
        return signature;
    }

    explicit PagedAttention(Attributes const& attributes)
        : PluginOf(attributes)
        , mHeads(attributes.integer("heads"))
        , mKvHeads(attributes.integer("kv_heads"))
    {
        if (mHeads % mKvHeads != 0 || mHeads / mKvHeads > kMaxGroup)
        {
            refuse("heads must be a multiple of kv_heads and at most ", kMaxGroup, " times as many, got ", mHeads,
                " and ", mKvHeads);
        }
        widths(); // refuses strides below them
    }

protected:
    void outputShapes(DimsExprs const* in, DimsExprs* out, IExprBuilder&) const override
    {
        out[0] = in[kQ];
        out[1] = in[kKCache];
        out[2] = in[kVCache];
    }

    int aliasedInput(int index) const override
    {
        return index == 1 ? kKCache : index == 2 ? kVCache : kNoInput;
    }

    void check(Desc const* in, Desc const* out) const override
    {
        auto const& inputs = declared().inputs;
        int64_t const rows = in[kQ].dims.d[0];
        int64_t const queries = in[kQ].dims.d[1];
        int64_t const qWidth = int64_t{mHeads} * kHeadDim;
        int64_t const kvWidth = int64_t{mKvHeads} * kHeadDim;
        expectShape(inputs[kQ], in[kQ], {rows, queries, qWidth});
        expectShape(inputs[kK], in[kK], {rows, queries, kvWidth});
        expectShape(inputs[kV], in[kV], {rows, queries, kvWidth});
        expectShape(inputs[kS], in[kS], {rows, queries, 2});
        expectShape(inputs[kQWeight], in[kQWeight], {qWidth});
        expectShape(inputs[kKWeight], in[kKWeight], {kvWidth});
        expectShape(inputs[kCos], in[kCos], {-1, kRotaryDim / 2});
        expectShape(inputs[kSin], in[kSin], {in[kCos].dims.d[0], kRotaryDim / 2});
        expectShape(inputs[kPastLen], in[kPastLen], {rows});
        expectShape(inputs[kNewLen], in[kNewLen], {rows});
        expectShape(inputs[kBlockTable], in[kBlockTable], {rows, -1});
        expectShape(inputs[kKCache], in[kKCache], {-1, -1, mKvHeads, kHeadDim});
        std::vector<int64_t> const cache(in[kKCache].dims.d, in[kKCache].dims.d + 4);
        expectShape(inputs[kVCache], in[kVCache], cache);
        expectShape(declared().outputs[0], out[0], {rows, queries, qWidth});
        expectShape(declared().outputs[1], out[1], cache);
        expectShape(declared().outputs[2], out[2], cache);
        if (cache[1] != 64)
        {
            refuse("pages hold 64 positions, got ", cache[1]);
        }
        if (cache[0] < 1 || in[kBlockTable].dims.d[1] < 1 || in[kCos].dims.d[0] < 1)
        {
            refuse("a cache, a block table and rotation angles are needed even for no position");
        }
    }

    size_t workspaceBytes(Desc const* in, Device const& device) const override
    {
        return AttentionPlan::workspaceBytes(problem(in), device);
    }

    size_t plan(Desc const* in, Device const& device, int tactic) override
    {
        return mPlan.make(problem(in), device, tactic);
    }

    void run(void const* const* in, void* const* out, char* workspace, void* stream) const override
    {
        mPlan.run({in[kQ], in[kK], in[kV], in[kS], in[kQWeight], in[kKWeight], in[kCos], in[kSin], in[kPastLen],
                      in[kNewLen], in[kBlockTable], out[1], out[2], out[0]},
            workspace, stream);
    }

    std::vector<char const*> kernels() const override
    {
        return AttentionPlan::kernels();
    }

    std::vector<char const*> tacticTables() const override
    {
        return AttentionPlan::tacticTables();
    }

private:
    // A problem with the widths and the attributes alone.
    AttentionProblem widths() const
    {
        AttentionProblem p{};
        p.heads = mHeads;
        p.kvHeads = mKvHeads;
        p.qStride = takeStride(attributes(), "q_stride", int64_t{mHeads} * kHeadDim);
        p.kStride = takeStride(attributes(), "k_stride", int64_t{mKvHeads} * kHeadDim);
        p.vStride = takeStride(attributes(), "v_stride", int64_t{mKvHeads} * kHeadDim);
        p.qTotal = static_cast<float>(attributes().integer("q_total"));
        p.kTotal = static_cast<float>(attributes().integer("k_total"));
        p.eps = attributes().real("eps");
        p.scale = attributes().real("scale");
        return p;
    }

    AttentionProblem problem(Desc const* in) const
    {
        AttentionProblem p = widths();
        p.rows = narrow("the number of rows", in[kQ].dims.d[0]);
        p.queries = narrow("the number of queries", in[kQ].dims.d[1]);
        p.tablePages = narrow("the width of the block table", in[kBlockTable].dims.d[1]);
        p.pages = narrow("the number of pages", in[kKCache].dims.d[0]);
        p.pageSize = narrow("the size of a page", in[kKCache].dims.d[1]);
        p.positions = narrow("the number of rotation angles", in[kCos].dims.d[0]);
        p.e4m3Cache = in[kKCache].type == DataType::kFP8;
        // kernels count the positions of a row in 32 bits
        narrow("the length of a row", int64_t{p.tablePages} * p.pageSize);
        return p;
    }

    int32_t mHeads;
    int32_t mKvHeads;
    AttentionPlan mPlan;
};
} // namespace

nvinfer1::IPluginCreatorInterface* pagedAttentionCreator()
{
    static Creator<PagedAttention> creator;
    return &creator;
}

} // namespace mm2c
