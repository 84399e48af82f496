// What all plugins share. A plugin's own file says its signature, shapes, checks, plan and launches.
#pragma once

#include "launcher/device.h"
#include "launcher/launch.h"
#include "plugin/attributes.h"
#include "plugin/tensors.h"

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace mm2c
{

constexpr char kNamespace[] = "mm2c";
constexpr char kVersion[] = "1";

// The op as its creator announces it. Lives as long as the library.
struct Signature
{
    char const* name;
    std::vector<AttributeSpec> attributes;
    std::vector<TensorSpec> inputs;
    std::vector<TensorSpec> outputs;
};

using nvinfer1::DimsExprs;
using nvinfer1::IExprBuilder;

// Implements the TensorRT interfaces over a few virtual functions, which may throw and are called by one thread at a
// time. Order: attachToContext loads kernels; onShapeChange checks and plans; enqueue runs the plan, and plans first if
// it is called with shapes other than the planned ones.
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuildV2,
               public nvinfer1::IPluginV3OneRuntime
{
public:
    using Descs = nvinfer1::DynamicPluginTensorDesc const*;

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

    int32_t configurePlugin(Descs in, int32_t nbInputs, Descs out, int32_t nbOutputs) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    int32_t getOutputDataTypes(
        DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const* shapeInputs,
        int32_t nbShapeInputs, DimsExprs* outputs, int32_t nbOutputs, IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t pos, Descs inOut, int32_t nbInputs, int32_t nbOutputs) noexcept override;
    size_t getWorkspaceSize(Descs in, int32_t nbInputs, Descs out, int32_t nbOutputs) const noexcept override;
    int32_t getAliasedInput(int32_t outputIndex) noexcept override;
    int32_t getNbTactics() noexcept override;
    int32_t getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept override;
    char const* getTimingCacheID() noexcept override;
    char const* getMetadataString() noexcept override;

    int32_t setTactic(int32_t tactic) noexcept override;
    int32_t onShapeChange(Desc const* in, int32_t nbInputs, Desc const* out, int32_t nbOutputs) noexcept override;
    int32_t enqueue(Desc const* inputDesc, Desc const* outputDesc, void const* const* inputs, void* const* outputs,
        void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

protected:
    Plugin(Signature const& signature, Attributes const& attributes);
    Plugin(Plugin const& other);

    virtual std::unique_ptr<Plugin> copy() const = 0;

    // Writes the outputs' dimensions; the number of inputs and their ranks are as declared.
    virtual void outputShapes(DimsExprs const* in, DimsExprs* out, IExprBuilder& builder) const = 0;

    // Input that output `index` shares its memory with, or kNoInput.
    virtual int aliasedInput(int index) const;

    // Checks concrete shapes; types and ranks are as declared.
    virtual void check(Desc const* in, Desc const* out) const = 0;

    // Bytes of workspace that serve these input shapes and all smaller ones on `device`, with any tactic.
    virtual size_t workspaceBytes(Desc const* in, Device const& device) const;

    // Chooses kernels and grids for checked shapes and gives the bytes of workspace that run() will use. Not called
    // when the outputs have no elements.
    virtual size_t plan(Desc const* in, Device const& device, int tactic) = 0;

    // Launches what plan() chose: no allocation on the device, no synchronisation.
    virtual void run(void const* const* in, void* const* out, char* workspace, void* stream) const = 0;

    // Kernels that plan() may choose from.
    virtual std::vector<char const*> kernels() const = 0;

    // The tile tables whose rows are the tactics, numbered through from 1.
    virtual std::vector<char const*> tacticTables() const;

    Signature const& signature() const
    {
        return mSignature;
    }
    Attributes const& attributes() const
    {
        return mAttributes;
    }

private:
    void checkTensor(TensorSpec const& spec, Desc const& desc, DataType like) const;
    void prepare(Desc const* in, Desc const* out);
    bool planned(Desc const* in, Desc const* out) const;
    void checkPointers(Desc const* in, Desc const* out, void const* const* inputs, void* const* outputs) const;

    Signature const& mSignature;
    Attributes mAttributes;
    std::string mTimingId;
    std::string mMetadata;
    int mTactic = 0;
    std::vector<Desc> mPlanned;    // inputs and outputs of the plan
    bool mEmpty = false;           // its outputs have no elements: nothing to launch
    size_t mWorkspaceBytes = 0;    // what it uses
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

// Gives a plugin class its constructor and its copies. PluginClass has a static `Signature const& declared()`.
template <typename PluginClass>
class PluginOf : public Plugin
{
public:
    explicit PluginOf(Attributes const& attributes)
        : Plugin(PluginClass::declared(), attributes)
    {
    }

protected:
    std::unique_ptr<Plugin> copy() const override
    {
        return std::make_unique<PluginClass>(static_cast<PluginClass const&>(*this));
    }
};

} // namespace mm2c
