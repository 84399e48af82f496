#include "plugin/plugin.h"

#include "refusal.h"

#include <cstring>

// Core and runtime phases; build.cpp holds the build phase.
namespace mm2c
{
namespace
{
constexpr uintptr_t kAlignment = 16;

bool same(nvinfer1::Dims const& a, nvinfer1::Dims const& b)
{
    return a.nbDims == b.nbDims
        && std::memcmp(a.d, b.d, static_cast<size_t>(a.nbDims) * sizeof a.d[0]) == 0;
}

void checkPointer(TensorSpec const& spec, Desc const& desc, void const* pointer)
{
    if (volume(desc) == 0)
    {
        return;
    }
    if (pointer == nullptr)
    {
        refuse(spec.name, " has no memory");
    }
    if (reinterpret_cast<uintptr_t>(pointer) % kAlignment != 0)
    {
        refuse(spec.name, " must be aligned to ", kAlignment, " bytes, got ", pointer);
    }
}
} // namespace

Plugin::Plugin(Signature const& signature, Attributes const& attributes)
    : mSignature(signature)
    , mAttributes(attributes)
{
}

Plugin::Plugin(Plugin const& other)
    : nvinfer1::IPluginV3()
    , nvinfer1::IPluginV3OneCore()
    , nvinfer1::IPluginV3OneBuildV2()
    , nvinfer1::IPluginV3OneRuntime()
    , mSignature(other.mSignature)
    , mAttributes(other.mAttributes)
    , mTactic(other.mTactic)
{
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    default: return nullptr;
    }
}

nvinfer1::IPluginV3* Plugin::clone() noexcept
{
    return guarded(mSignature.name, static_cast<Plugin*>(nullptr), [&] { return copy().release(); });
}

char const* Plugin::getPluginName() const noexcept
{
    return mSignature.name;
}

char const* Plugin::getPluginVersion() const noexcept
{
    return kVersion;
}

char const* Plugin::getPluginNamespace() const noexcept
{
    return kNamespace;
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept
{
    return guarded(mSignature.name, static_cast<Plugin*>(nullptr), [&] {
        std::unique_ptr<Plugin> attached = copy();
        for (char const* kernel : kernels())
        {
            loadKernel(kernel);
        }
        return attached.release();
    });
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept
{
    return guarded(mSignature.name, static_cast<nvinfer1::PluginFieldCollection const*>(nullptr), [&] {
        mFields = mAttributes.fields();
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
        return &mCollection;
    });
}

int32_t Plugin::setTactic(int32_t tactic) noexcept
{
    return guarded(mSignature.name, 1, [&] {
        if (tactic < 0 || tactic > getNbTactics())
        {
            refuse("there is no tactic ", tactic);
        }
        mTactic = tactic;
        mPlanned.clear();
        return 0;
    });
}

void Plugin::checkTensor(TensorSpec const& spec, Desc const& desc, DataType like) const
{
    bool known = false;
    for (DataType type : spec.types)
    {
        known = known || desc.type == type;
    }
    if (!known || (spec.like != kNoInput && desc.type != like))
    {
        refuse(spec.name, " cannot be ", nameOf(desc.type));
    }
    if (desc.format != nvinfer1::TensorFormat::kLINEAR)
    {
        refuse(spec.name, " must be in linear format");
    }
    if (spec.rank == kAnyRank ? desc.dims.nbDims < 1 : desc.dims.nbDims != spec.rank)
    {
        refuse(spec.name, " has the wrong rank: ", textOf(desc.dims));
    }
}

void Plugin::prepare(Desc const* in, Desc const* out)
{
    mPlanned.clear();
    auto const like = [&](TensorSpec const& spec) { return spec.like == kNoInput ? DataType{} : in[spec.like].type; };
    for (size_t i = 0; i < mSignature.inputs.size(); ++i)
    {
        checkTensor(mSignature.inputs[i], in[i], like(mSignature.inputs[i]));
        volume(in[i]);
    }
    mEmpty = true;
    for (size_t i = 0; i < mSignature.outputs.size(); ++i)
    {
        checkTensor(mSignature.outputs[i], out[i], like(mSignature.outputs[i]));
        // caches are never empty where there is work, nor the reason for any
        mEmpty = mEmpty && (volume(out[i]) == 0 || aliasedInput(static_cast<int>(i)) != kNoInput);
    }
    check(in, out);
    if (!mEmpty)
    {
        mWorkspaceBytes = plan(in, currentDevice(), mTactic);
    }
    mPlanned.assign(in, in + mSignature.inputs.size());
    mPlanned.insert(mPlanned.end(), out, out + mSignature.outputs.size());
}

bool Plugin::planned(Desc const* in, Desc const* out) const
{
    size_t const inputs = mSignature.inputs.size();
    if (mPlanned.size() != inputs + mSignature.outputs.size())
    {
        return false;
    }
    for (size_t i = 0; i < mPlanned.size(); ++i)
    {
        Desc const& now = i < inputs ? in[i] : out[i - inputs];
        if (mPlanned[i].type != now.type || mPlanned[i].format != now.format || !same(mPlanned[i].dims, now.dims))
        {
            return false;
        }
    }
    return true;
}

int32_t Plugin::onShapeChange(Desc const* in, int32_t nbInputs, Desc const* out, int32_t nbOutputs) noexcept
{
    return guarded(mSignature.name, 1, [&] {
        if (nbInputs != static_cast<int32_t>(mSignature.inputs.size())
            || nbOutputs != static_cast<int32_t>(mSignature.outputs.size()))
        {
            refuse("has ", mSignature.inputs.size(), " inputs and ", mSignature.outputs.size(), " outputs, got ",
                nbInputs, " and ", nbOutputs);
        }
        // TensorRT also asks when nothing but an address has changed
        if (!planned(in, out))
        {
            prepare(in, out);
        }
        return 0;
    });
}

void Plugin::checkPointers(
    Desc const* in, Desc const* out, void const* const* inputs, void* const* outputs) const
{
    for (size_t i = 0; i < mSignature.inputs.size(); ++i)
    {
        checkPointer(mSignature.inputs[i], in[i], inputs[i]);
    }
    for (size_t i = 0; i < mSignature.outputs.size(); ++i)
    {
        checkPointer(mSignature.outputs[i], out[i], outputs[i]);
        int const input = aliasedInput(static_cast<int>(i));
        if (input != kNoInput && outputs[i] != inputs[input])
        {
            refuse(mSignature.outputs[i].name, " must lie where ", mSignature.inputs[static_cast<size_t>(input)].name,
                " does; it is updated in place");
        }
    }
}

int32_t Plugin::enqueue(Desc const* inputDesc, Desc const* outputDesc, void const* const* inputs, void* const* outputs,
    void* workspace, cudaStream_t stream) noexcept
{
    return guarded(mSignature.name, 1, [&] {
        if (!planned(inputDesc, outputDesc))
        {
            prepare(inputDesc, outputDesc);
        }
        if (!mEmpty)
        {
            checkPointers(inputDesc, outputDesc, inputs, outputs);
            if ((mWorkspaceBytes > 0 && workspace == nullptr)
                || reinterpret_cast<uintptr_t>(workspace) % kAlignment != 0)
            {
                refuse("needs a workspace of ", mWorkspaceBytes, " bytes, aligned to ", kAlignment, ", got ",
                    workspace);
            }
            run(inputs, outputs, static_cast<char*>(workspace), stream);
        }
        return 0;
    });
}

int Plugin::aliasedInput(int) const
{
    return kNoInput;
}

size_t Plugin::workspaceBytes(Desc const*, Device const&) const
{
    return 0;
}

std::vector<char const*> Plugin::tacticTables() const
{
    return {};
}

} // namespace mm2c
