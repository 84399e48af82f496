// What TensorRT's builder asks of a plugin.
#include "expressions.h"
#include "state.h"

using namespace nvinfer1;

namespace
{

// The plugin's build capability, or null with the error kept.
IPluginV3OneBuild* builderOf(Mm2hPlugin* plugin)
{
    if (plugin->build == nullptr)
    {
        mm2h::fail("has no build capability: it was created for the runtime phase");
    }
    return plugin->build;
}

} // namespace

int mm2c_host_output_count(Mm2hPlugin* plugin)
{
    IPluginV3OneBuild* const build = builderOf(plugin);
    return build != nullptr ? build->getNbOutputs() : -1;
}

int mm2c_host_output_dtypes(Mm2hPlugin* plugin, int32_t const* in, int32_t n_in, int32_t* out, int32_t n_out)
{
    IPluginV3OneBuild* const build = builderOf(plugin);
    if (build == nullptr)
    {
        return 1;
    }
    std::vector<DataType> given(static_cast<size_t>(n_in)), made(static_cast<size_t>(n_out));
    for (size_t i = 0; i < given.size(); ++i)
    {
        given[i] = static_cast<DataType>(in[i]);
    }
    if (build->getOutputDataTypes(made.data(), n_out, given.data(), n_in) != 0)
    {
        mm2h::fail("gives no output types for these inputs", plugin->library);
        return 1;
    }
    for (size_t i = 0; i < made.size(); ++i)
    {
        out[i] = static_cast<int32_t>(made[i]);
    }
    return 0;
}

int mm2c_host_output_shapes(Mm2hPlugin* plugin, Mm2hTensor const* in, int32_t n_in, Mm2hTensor* out, int32_t n_out)
{
    IPluginV3OneBuild* const build = builderOf(plugin);
    if (build == nullptr || !mm2h::sound(in, n_in))
    {
        return 1;
    }
    mm2h::ExtentBuilder builder;
    std::vector<DimsExprs> given(static_cast<size_t>(n_in)), made(static_cast<size_t>(n_out));
    for (size_t i = 0; i < given.size(); ++i)
    {
        given[i].nbDims = in[i].rank;
        for (int32_t d = 0; d < in[i].rank; ++d)
        {
            given[i].d[d] = builder.make({in[i].min[d], in[i].opt[d], in[i].max[d]}, in[i].dims[d] >= 0);
        }
    }
    int const status
        = build->getOutputShapes(given.data(), n_in, nullptr, 0, made.data(), n_out, builder);
    if (!builder.refused().empty())
    {
        mm2h::fail(builder.refused());
        return 1;
    }
    if (status != 0)
    {
        mm2h::fail("gives no output shapes for these inputs", plugin->library);
        return 1;
    }
    for (size_t i = 0; i < made.size(); ++i)
    {
        int32_t const rank = made[i].nbDims;
        if (rank < 0 || rank > MM2H_MAX_DIMS)
        {
            mm2h::fail("gives output " + std::to_string(i) + " " + std::to_string(rank) + " dimensions");
            return 1;
        }
        out[i].rank = rank;
        for (int32_t d = 0; d < rank; ++d)
        {
            auto const* const extent = static_cast<mm2h::Extent const*>(made[i].d[d]);
            if (extent == nullptr)
            {
                mm2h::fail("leaves dimension " + std::to_string(d) + " of output " + std::to_string(i) + " unset");
                return 1;
            }
            out[i].min[d] = extent->bounds()[0];
            out[i].opt[d] = extent->bounds()[1];
            out[i].max[d] = extent->bounds()[2];
            out[i].dims[d] = extent->isConstant() ? extent->bounds()[1] : -1;
        }
    }
    return 0;
}

int mm2c_host_takes_position(
    Mm2hPlugin* plugin, int32_t position, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out)
{
    IPluginV3OneBuild* const build = builderOf(plugin);
    if (build == nullptr || !mm2h::sound(tensors, n_in + n_out))
    {
        return -2;
    }
    auto const descriptions = mm2h::profiled(tensors, n_in + n_out);
    return build->supportsFormatCombination(position, descriptions.data(), n_in, n_out) ? 1 : 0;
}

int mm2c_host_refused_position(Mm2hPlugin* plugin, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out)
{
    IPluginV3OneBuild* const build = builderOf(plugin);
    if (build == nullptr || !mm2h::sound(tensors, n_in + n_out))
    {
        return -2;
    }
    auto const descriptions = mm2h::profiled(tensors, n_in + n_out);
    for (int32_t position = 0; position < n_in + n_out; ++position)
    {
        if (!build->supportsFormatCombination(position, descriptions.data(), n_in, n_out))
        {
            return position;
        }
    }
    return -1;
}

int mm2c_host_aliased_input(Mm2hPlugin* plugin, int32_t output)
{
    return plugin->aliasing != nullptr ? plugin->aliasing->getAliasedInput(output) : -1;
}

int mm2c_host_tactics(Mm2hPlugin* plugin, int32_t* tactics, int32_t size)
{
    IPluginV3OneBuild* const build = builderOf(plugin);
    if (build == nullptr)
    {
        return -1;
    }
    int32_t const count = build->getNbTactics();
    if (count > 0 && count <= size && build->getValidTactics(tactics, count) != 0)
    {
        mm2h::fail("does not tell its tactics", plugin->library);
        return -1;
    }
    return count;
}

int mm2c_host_configure(Mm2hPlugin* plugin, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out)
{
    IPluginV3OneBuild* const build = builderOf(plugin);
    if (build == nullptr || !mm2h::sound(tensors, n_in + n_out))
    {
        return 1;
    }
    auto const all = mm2h::profiled(tensors, n_in + n_out);
    if (build->configurePlugin(all.data(), n_in, all.data() + n_in, n_out) != 0)
    {
        mm2h::fail("", plugin->library);
        return 1;
    }
    return 0;
}

int64_t mm2c_host_workspace(Mm2hPlugin* plugin, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out)
{
    IPluginV3OneBuild* const build = builderOf(plugin);
    if (build == nullptr || !mm2h::sound(tensors, n_in + n_out))
    {
        return -1;
    }
    auto const all = mm2h::profiled(tensors, n_in + n_out);
    return static_cast<int64_t>(build->getWorkspaceSize(all.data(), n_in, all.data() + n_in, n_out));
}
