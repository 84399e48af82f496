// The creator of one plugin class.
#pragma once

#include "plugin/plugin.h"
#include "refusal.h"

namespace mm2c
{

// PluginClass has a static `Signature const& declared()` and a constructor from Attributes.
template <typename PluginClass>
class Creator : public nvinfer1::IPluginCreatorV3One
{
public:
    Creator()
    {
        for (AttributeSpec const& spec : PluginClass::declared().attributes)
        {
            bool const whole = spec.kind == AttributeSpec::Kind::kInteger;
            auto const type = whole ? nvinfer1::PluginFieldType::kINT32 : nvinfer1::PluginFieldType::kFLOAT32;
            mFields.emplace_back(spec.name, nullptr, type, 1);
        }
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
    }

    nvinfer1::IPluginV3* createPlugin(char const*, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase) noexcept override
    {
        return guarded(getPluginName(), static_cast<nvinfer1::IPluginV3*>(nullptr),
            [&] { return new PluginClass(Attributes(PluginClass::declared().attributes, fields)); });
    }

    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &mCollection;
    }

    char const* getPluginName() const noexcept override
    {
        return PluginClass::declared().name;
    }

    char const* getPluginVersion() const noexcept override
    {
        return kVersion;
    }

    char const* getPluginNamespace() const noexcept override
    {
        return kNamespace;
    }

private:
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

// Each defined in the file of its plugin.
nvinfer1::IPluginCreatorInterface* fp8LinearCreator();
nvinfer1::IPluginCreatorInterface* qkSumSquaresCreator();
nvinfer1::IPluginCreatorInterface* pagedAttentionCreator();
nvinfer1::IPluginCreatorInterface* moeRoutingCreator();
nvinfer1::IPluginCreatorInterface* moeExpertsFp8Creator();
nvinfer1::IPluginCreatorInterface* moeExpertsBf16Creator();
nvinfer1::IPluginCreatorInterface* moeFp8Creator();
nvinfer1::IPluginCreatorInterface* moeBf16Creator();
nvinfer1::IPluginCreatorInterface* addRmsNormCreator();
nvinfer1::IPluginCreatorInterface* routerLinearCreator();
nvinfer1::IPluginCreatorInterface* sampleCreator();

} // namespace mm2c
