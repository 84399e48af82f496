#include "plugin/plugin.h"

#include "mm2c/api.h"
#include "refusal.h"

#include <algorithm>

// The build phase of Plugin.
namespace mm2c
{

int32_t Plugin::configurePlugin(Descs in, int32_t nbInputs, Descs out, int32_t nbOutputs) noexcept
{
    return guarded(mSignature.name, 1, [&] {
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            TensorSpec const& spec = mSignature.inputs.at(static_cast<size_t>(i));
            checkTensor(spec, in[i].desc, spec.like == kNoInput ? DataType{} : in[spec.like].desc.type);
        }
        for (int32_t i = 0; i < nbOutputs; ++i)
        {
            TensorSpec const& spec = mSignature.outputs.at(static_cast<size_t>(i));
            checkTensor(spec, out[i].desc, spec.like == kNoInput ? DataType{} : in[spec.like].desc.type);
        }
        return 0;
    });
}

int32_t Plugin::getNbOutputs() const noexcept
{
    return static_cast<int32_t>(mSignature.outputs.size());
}

int32_t Plugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return guarded(mSignature.name, 1, [&] {
        if (nbInputs != static_cast<int32_t>(mSignature.inputs.size()) || nbOutputs != getNbOutputs())
        {
            refuse("has ", mSignature.inputs.size(), " inputs, got ", nbInputs);
        }
        for (int32_t i = 0; i < nbOutputs; ++i)
        {
            TensorSpec const& spec = mSignature.outputs[static_cast<size_t>(i)];
            outputTypes[i] = spec.like == kNoInput ? spec.types.front() : inputTypes[spec.like];
        }
        return 0;
    });
}

int32_t Plugin::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t,
    DimsExprs* outputs, int32_t nbOutputs, IExprBuilder& builder) noexcept
{
    return guarded(mSignature.name, 1, [&] {
        if (nbInputs != static_cast<int32_t>(mSignature.inputs.size()) || nbOutputs != getNbOutputs())
        {
            refuse("has ", mSignature.inputs.size(), " inputs, got ", nbInputs);
        }
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            TensorSpec const& spec = mSignature.inputs[static_cast<size_t>(i)];
            if (spec.rank == kAnyRank ? inputs[i].nbDims < 1 : inputs[i].nbDims != spec.rank)
            {
                refuse(spec.name, " has ", inputs[i].nbDims, " dimensions");
            }
        }
        outputShapes(inputs, outputs, builder);
        return 0;
    });
}

bool Plugin::supportsFormatCombination(int32_t pos, Descs inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    auto const inputs = static_cast<int32_t>(mSignature.inputs.size());
    if (nbInputs != inputs || nbOutputs != getNbOutputs() || pos < 0 || pos >= nbInputs + nbOutputs)
    {
        return false;
    }
    TensorSpec const& spec = pos < inputs ? mSignature.inputs[static_cast<size_t>(pos)]
                                          : mSignature.outputs[static_cast<size_t>(pos - inputs)];
    Desc const& desc = inOut[pos].desc;
    return desc.format == nvinfer1::TensorFormat::kLINEAR
        && std::find(spec.types.begin(), spec.types.end(), desc.type) != spec.types.end()
        && (spec.like == kNoInput || desc.type == inOut[spec.like].desc.type);
}

size_t Plugin::getWorkspaceSize(Descs in, int32_t nbInputs, Descs, int32_t) const noexcept
{
    return guarded(mSignature.name, size_t{0}, [&] {
        std::vector<Desc> largest;
        for (int32_t i = 0; i < nbInputs; ++i)
        {
            largest.push_back(in[i].desc);
            largest.back().dims = in[i].max;
            volume(largest.back());
        }
        return workspaceBytes(largest.data(), currentDevice());
    });
}

int32_t Plugin::getAliasedInput(int32_t outputIndex) noexcept
{
    return aliasedInput(outputIndex);
}

int32_t Plugin::getNbTactics() noexcept
{
    return guarded(mSignature.name, 0, [&] {
        size_t count = 0;
        for (char const* table : tacticTables())
        {
            count += tiles(table, currentDevice().imageSm).size();
        }
        return static_cast<int32_t>(count);
    });
}

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept
{
    for (int32_t i = 0; i < nbTactics; ++i)
    {
        tactics[i] = i + 1;
    }
    return 0;
}

// The timing of a kernel holds for this very build of it.
char const* Plugin::getTimingCacheID() noexcept
{
    return guarded(mSignature.name, static_cast<char const*>(nullptr), [&] {
        mTimingId = mAttributes.text() + "; " + mm2c_plugins_version();
        return mTimingId.c_str();
    });
}

char const* Plugin::getMetadataString() noexcept
{
    return guarded(mSignature.name, static_cast<char const*>(nullptr), [&] {
        mMetadata = std::string(mSignature.name) + "(" + mAttributes.text() + ")";
        return mMetadata.c_str();
    });
}

} // namespace mm2c
