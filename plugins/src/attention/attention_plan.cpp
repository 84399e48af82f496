#include "attention/attention_plan.h"

#include "plugin/tensors.h"
#include "plugin/workspace.h"

#include <algorithm>

namespace mm2c
{
namespace
{
constexpr char kDecodeTable[] = "attention_decode";
constexpr char kPrefillTable[] = "attention_prefill";
constexpr int kBlocksPerMultiprocessor = 2;

// Parts of a row's positions that are looked at by blocks of their own: enough of them to fill the device, at least two
// tiles of `tilePositions` each at the table's full length. Chosen without the lengths, which lie on the device.
int32_t splitsOf(AttentionProblem const& p, Device const& device, int tilePositions)
{
    int64_t const blocks = int64_t{p.kvHeads} * p.rows;
    int64_t const filling = ceilDiv(int64_t{kBlocksPerMultiprocessor} * device.multiprocessors, blocks);
    int64_t const longest = ceilDiv(int64_t{p.tablePages} * p.pageSize, int64_t{2} * tilePositions);
    return static_cast<int32_t>(std::max<int64_t>(1, std::min({filling, longest, int64_t{kMaxSplits}})));
}
} // namespace

std::vector<char const*> AttentionPlan::kernels()
{
    return {"rope_kv", "attention_decode", "attention_merge", "attention_prefill"};
}

std::vector<char const*> AttentionPlan::tacticTables()
{
    return {kDecodeTable, kPrefillTable};
}

AttentionPlan::Slices AttentionPlan::slices(AttentionProblem const& p, int64_t parts)
{
    WorkspaceLayout layout;
    Slices s{};
    s.rotated = layout.take(int64_t{p.rows} * p.queries * p.heads * kHeadDim, 2);
    s.part = layout.take(parts * p.heads * kHeadDim, sizeof(float));
    s.lse = layout.take(parts * p.heads, sizeof(float));
    s.bytes = layout.bytes();
    return s;
}

size_t AttentionPlan::workspaceBytes(AttentionProblem const& p, Device const& device)
{
    // rows * splits of any number of rows up to this one, see splitsOf
    int64_t const filling = ceilDiv(int64_t{kBlocksPerMultiprocessor} * device.multiprocessors, p.kvHeads);
    int64_t const parts = std::min(filling + p.rows, int64_t{kMaxSplits} * p.rows);
    return slices(p, parts).bytes;
}

size_t AttentionPlan::make(AttentionProblem const& p, Device const& device, int tactic)
{
    mProblem = p;
    int const sm = device.imageSm;
    int64_t const tokens = int64_t{p.rows} * p.queries;
    Constant const page{"PAGE", p.pageSize};
    Constant const e4m3{"KV8", p.e4m3Cache};

    Tile const rope = chooseTile("rope_kv", sm, tokens, 0, anyTile);
    int64_t const headsAtOnce = rope["HB"];
    mRope.image = &chooseImage("rope_kv", device, rope.with({page, e4m3}));
    mRope.grid = {tokens, ceilDiv(p.heads, headsAtOnce) + 2 * ceilDiv(p.kvHeads, headsAtOnce)};

    int const decodeTactics = static_cast<int>(tiles(kDecodeTable, sm).size());
    mSplits = 1;
    if (p.queries == 1)
    {
        Tile const tile = chooseTile(kDecodeTable, sm, tokens, tactic <= decodeTactics ? tactic : 0, anyTile);
        mSplits = splitsOf(p, device, tile["BN"]);
        mAttend.image
            = &chooseImage("attention_decode", device, tile.with({page, e4m3, {"DIRECT", mSplits == 1}}));
        mAttend.grid = {p.kvHeads, mSplits, p.rows};
    }
    else
    {
        // By the queries of a row: its tiles hold queries of one row only.
        Tile const tile
            = chooseTile(kPrefillTable, sm, p.queries, tactic > decodeTactics ? tactic - decodeTactics : 0, anyTile);
        mAttend.image = &chooseImage("attention_prefill", device, tile.with({page, e4m3}));
        mAttend.grid = {ceilDiv(p.queries, tile["BM"]), p.heads, p.rows};
    }
    if (mSplits > 1)
    {
        Tile const tile = chooseTile("attention_merge", sm, tokens, 0,
            [&](Tile const& candidate) { return mSplits <= candidate["SP"]; });
        mMerge.image = &chooseImage("attention_merge", device, tile.with({}));
        mMerge.grid = {int64_t{p.rows} * p.heads};
    }
    mSlices = slices(p, mSplits > 1 ? int64_t{mSplits} * p.rows : 0);
    return mSlices.bytes;
}

void AttentionPlan::run(AttentionTensors const& t, char* workspace, void* stream) const
{
    AttentionProblem const& p = mProblem;
    char* const rotated = workspace + mSlices.rotated;
    launch(stream, *mRope.image, mRope.grid, t.q, t.k, t.v, t.s, t.qWeight, t.kWeight, t.cos, t.sin, t.pastLen,
        t.newLen, t.blockTable, rotated, t.kCache, t.vCache, p.queries, p.tablePages, p.positions, p.pages, p.heads,
        p.kvHeads, p.qStride, p.kStride, p.vStride, p.qTotal, p.kTotal, p.eps);
    if (p.queries != 1)
    {
        launch(stream, *mAttend.image, mAttend.grid, rotated, t.kCache, t.vCache, t.blockTable, t.pastLen, t.newLen,
            t.out, p.queries, p.tablePages, p.pages, p.heads, p.kvHeads, p.scale);
        return;
    }
    char* const part = workspace + mSlices.part;
    char* const lse = workspace + mSlices.lse;
    launch(stream, *mAttend.image, mAttend.grid, rotated, t.kCache, t.vCache, t.blockTable, t.pastLen, t.newLen, part,
        lse, t.out, p.tablePages, p.pages, p.heads, p.kvHeads, mSplits, p.scale);
    if (mSplits > 1)
    {
        launch(stream, *mMerge.image, mMerge.grid, part, lse, t.out, mSplits);
    }
}

} // namespace mm2c
