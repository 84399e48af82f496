#include "moe/experts_plan.h"

#include "plugin/tensors.h"
#include "plugin/workspace.h"
#include "refusal.h"

#include <algorithm>
#include <climits>

namespace mm2c
{
namespace
{
constexpr char kSmallTable[] = "moe_small";
constexpr char kGroupedTable[] = "moe_grouped";
constexpr char kDownTable[] = "moe_down";
constexpr char kPlanTable[] = "moe_plan";
constexpr char kPermuteTable[] = "moe_permute";
constexpr int kExpertColumns = 256; // EP of every kernel

int64_t tilesOf(int64_t pairs, int64_t experts, int64_t tileRows)
{
    return std::min(pairs, experts) + pairs / tileRows;
}

// The least value of a constant in a table, or `none` for an empty one.
int least(char const* table, int sm, char const* constant, int none)
{
    int found = INT_MAX;
    for (Tile const& tile : tiles(table, sm))
    {
        found = std::min(found, tile[constant]);
    }
    return found == INT_MAX ? none : found;
}

int mostTokens(char const* table, int sm)
{
    int found = 0;
    for (Tile const& tile : tiles(table, sm))
    {
        found = std::max(found, tile.row->max_tokens);
    }
    return found;
}

// Columns a step: the row's where they divide the product's depth and the `block` columns that share a scale, else 64,
// which always do.
Constant columns(Tile const& tile, int64_t depth, bool scaled, int32_t block)
{
    int const wanted = tile["BK"];
    bool const fits = depth % wanted == 0 && (!scaled || block % wanted == 0);
    return {"BK", fits ? wanted : 64};
}
} // namespace

std::vector<char const*> ExpertsPlan::kernels()
{
    return {"moe_small_gate_up", "moe_small_down", "moe_plan", "moe_routing", "moe_count", "moe_offsets",
        "moe_scatter", "moe_gate_up", "moe_down", "moe_combine"};
}

std::vector<char const*> ExpertsPlan::tacticTables()
{
    return {kSmallTable, kGroupedTable};
}

ExpertsPlan::Slices ExpertsPlan::slices(ExpertsProblem const& problem, int64_t tiles, int64_t chunks)
{
    int64_t const pairs = int64_t{problem.tokens} * problem.topK;
    bool const grouped = tiles > 0;
    WorkspaceLayout layout;
    Slices s{};
    s.weights = layout.take(problem.routed ? pairs : 0, sizeof(float));
    s.ids = layout.take(problem.routed ? pairs : 0, sizeof(int32_t));
    s.h = layout.take(pairs * problem.intermediate, 2);
    s.y = layout.take(grouped ? pairs * problem.width : 0, 2);
    s.order = layout.take(grouped ? pairs : 0, sizeof(int32_t));
    s.tileExpert = layout.take(tiles, sizeof(int32_t));
    s.tileRow = layout.take(tiles, sizeof(int32_t));
    s.tileEnd = layout.take(tiles, sizeof(int32_t));
    s.counts = layout.take(chunks * kExpertColumns, sizeof(int32_t));
    s.bytes = layout.bytes();
    return s;
}

size_t ExpertsPlan::workspaceBytes(ExpertsProblem const& problem, Device const& device)
{
    int64_t const pairs = int64_t{problem.tokens} * problem.topK;
    int const tileRows = least(kGroupedTable, device.imageSm, "BM", 1);
    int const chunk = least(kPermuteTable, device.imageSm, "CHUNK", 1);
    return slices(problem, tilesOf(pairs, problem.localExperts, tileRows), ceilDiv(pairs, chunk)).bytes;
}

size_t ExpertsPlan::make(ExpertsProblem const& problem, Device const& device, int tactic)
{
    mProblem = problem;
    mPairs = narrow("the number of tokens times top_k", int64_t{problem.tokens} * problem.topK);
    mTiles = 0;
    mChunks = 0;
    int const sm = device.imageSm;
    int const smallTactics = static_cast<int>(tiles(kSmallTable, sm).size());
    bool const wantsGrouped = tactic > smallTactics;
    if (problem.tokens <= mostTokens(kSmallTable, sm) && !wantsGrouped)
    {
        mWay = Way::kSmall;
        makeSmall(device, tactic);
    }
    else
    {
        mWay = problem.tokens <= mostTokens(kPlanTable, sm) ? Way::kOneBlock : Way::kManyBlocks;
        makeGrouped(device, wantsGrouped ? tactic - smallTactics : 0);
    }
    mSlices = slices(problem, mTiles, mChunks);
    return mSlices.bytes;
}

void ExpertsPlan::makeSmall(Device const& device, int tactic)
{
    ExpertsProblem const& p = mProblem;
    Tile const tile = chooseTile(kSmallTable, device.imageSm, p.tokens, tactic, anyTile);
    Constant const scaled{"SCALED", p.scaled};
    int64_t const rows = tile["BN"];
    mGateUp.image
        = &chooseImage("moe_small_gate_up", device, tile.with({scaled, {"ROUTE", p.routed}}));
    mGateUp.grid = {ceilDiv(p.intermediate, rows), mPairs};
    mDown.image = &chooseImage("moe_small_down", device, tile.with({scaled}));
    mDown.grid = {ceilDiv(p.width, rows), p.tokens};
}

void ExpertsPlan::makeGrouped(Device const& device, int tactic)
{
    ExpertsProblem const& p = mProblem;
    int const sm = device.imageSm;
    Tile const up = chooseTile(kGroupedTable, sm, p.tokens, tactic, anyTile);
    // both products go over the same tiles of pairs
    auto const sameRows = [&](Tile const& tile) { return tile["BM"] == up["BM"]; };
    Tile const down = chooseTile(kDownTable, sm, p.tokens, tactic, sameRows);
    mTiles = narrow("the number of tiles", tilesOf(mPairs, p.localExperts, up["BM"]));
    Constant const scaled{"SCALED", p.scaled};
    mGateUp.image = &chooseImage("moe_gate_up", device, up.with({scaled, columns(up, p.width, p.scaled, p.widthBlock)}));
    mGateUp.grid = {ceilDiv(p.intermediate, up["BN"]), mTiles};
    mDown.image = &chooseImage("moe_down", device, down.with({scaled, columns(down, p.intermediate, p.scaled, p.innerBlock)}));
    mDown.grid = {ceilDiv(p.width, down["BN"]), mTiles};
    Tile const combine = chooseTile("moe_combine", sm, p.tokens, 0, anyTile);
    mCombine.image = &chooseImage("moe_combine", device, combine.with({}));
    mCombine.grid = {ceilDiv(p.width, combine["BC"]), p.tokens};
    makeGrouping(device, up["BM"]);
}

void ExpertsPlan::makeGrouping(Device const& device, int tileRows)
{
    ExpertsProblem const& p = mProblem;
    int const sm = device.imageSm;
    if (mWay == Way::kOneBlock)
    {
        Tile const tile = chooseTile(kPlanTable, sm, p.tokens, 0, anyTile);
        mRoute.image = &chooseImage("moe_plan", device, tile.with({{"BM", tileRows}, {"ROUTE", p.routed}}));
        mRoute.grid = {1};
        return;
    }
    Tile const permute = chooseTile(kPermuteTable, sm, p.tokens, 0, anyTile);
    mChunks = narrow("the number of chunks", ceilDiv(mPairs, permute["CHUNK"]));
    if (p.routed)
    {
        Tile const routing = chooseTile("moe_routing", sm, p.tokens, 0, anyTile);
        mRoute.image = &chooseImage("moe_routing", device, routing.with({}));
        mRoute.grid = {ceilDiv(p.tokens, routing["ROWS"])};
    }
    mCount.image = &chooseImage("moe_count", device, permute.with({}));
    mCount.grid = {mChunks};
    mOffsets.image = &chooseImage("moe_offsets", device, {{"BM", tileRows}});
    mOffsets.grid = {1};
    mScatter.image = &chooseImage("moe_scatter", device, permute.with({}));
    mScatter.grid = {mChunks};
}

void ExpertsPlan::group(ExpertsTensors const& t, char* workspace, void* stream) const
{
    ExpertsProblem const& p = mProblem;
    char* const order = workspace + mSlices.order;
    char* const tileExpert = workspace + mSlices.tileExpert;
    char* const tileRow = workspace + mSlices.tileRow;
    char* const tileEnd = workspace + mSlices.tileEnd;
    if (mWay == Way::kOneBlock)
    {
        launch(stream, *mRoute.image, mRoute.grid, t.logits, t.bias, t.weights, t.ids, order, tileExpert, tileRow,
            tileEnd, p.tokens, p.experts, p.topK, p.firstExpert, p.localExperts, mTiles);
        return;
    }
    if (p.routed)
    {
        launch(stream, *mRoute.image, mRoute.grid, t.logits, t.bias, t.weights, t.ids, p.tokens, p.experts, p.topK);
    }
    char* const counts = workspace + mSlices.counts;
    launch(stream, *mCount.image, mCount.grid, t.ids, counts, mPairs, p.firstExpert, p.localExperts);
    launch(stream, *mOffsets.image, mOffsets.grid, counts, tileExpert, tileRow, tileEnd, mChunks, p.localExperts,
        mTiles);
    launch(stream, *mScatter.image, mScatter.grid, t.ids, counts, order, mPairs, p.firstExpert, p.localExperts);
}

void ExpertsPlan::run(ExpertsTensors const& given, char* workspace, void* stream) const
{
    ExpertsProblem const& p = mProblem;
    ExpertsTensors t = given;
    if (p.routed)
    {
        t.weights = workspace + mSlices.weights;
        t.ids = workspace + mSlices.ids;
    }
    else
    {
        t.logits = t.weights; // not read, yet a valid address
        t.bias = t.weights;
    }
    if (!p.scaled)
    {
        t.w13Scale = t.w13; // not read either
        t.w2Scale = t.w2;
    }
    char* const h = workspace + mSlices.h;
    if (mWay == Way::kSmall)
    {
        launch(stream, *mGateUp.image, mGateUp.grid, t.x, t.logits, t.bias, t.w13, t.w13Scale, t.weights, t.ids, h,
            p.width, p.intermediate, p.experts, p.topK, p.firstExpert, p.localExperts, p.innerBlock, p.widthBlock);
        launch(stream, *mDown.image, mDown.grid, h, t.w2, t.w2Scale, t.weights, t.ids, t.out, p.width, p.intermediate,
            p.topK, p.firstExpert, p.localExperts, p.widthBlock, p.innerBlock);
        return;
    }
    group(t, workspace, stream);
    char* const y = workspace + mSlices.y;
    char* const order = workspace + mSlices.order;
    char* const tileExpert = workspace + mSlices.tileExpert;
    char* const tileRow = workspace + mSlices.tileRow;
    char* const tileEnd = workspace + mSlices.tileEnd;
    launch(stream, *mGateUp.image, mGateUp.grid, t.x, t.w13, t.w13Scale, order, tileExpert, tileRow, tileEnd, h,
        p.width, p.intermediate, p.topK, p.innerBlock, p.widthBlock);
    launch(stream, *mDown.image, mDown.grid, h, t.w2, t.w2Scale, order, t.weights, tileExpert, tileRow, tileEnd, y,
        p.width, p.intermediate, p.topK, p.widthBlock, p.innerBlock);
    launch(stream, *mCombine.image, mCombine.grid, y, t.ids, t.out, p.width, p.topK, p.firstExpert, p.localExperts);
}

} // namespace mm2c
