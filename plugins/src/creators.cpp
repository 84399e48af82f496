// The two symbols that TensorRT looks for in a plugin library.
#include "plugin/creator.h"

#include "mm2c/api.h"
#include "refusal.h"

extern "C" MM2C_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators)
{
    static nvinfer1::IPluginCreatorInterface* const creators[] = {
        mm2c::fp8LinearCreator(),
        mm2c::qkSumSquaresCreator(),
        mm2c::pagedAttentionCreator(),
        mm2c::moeRoutingCreator(),
        mm2c::moeExpertsFp8Creator(),
        mm2c::moeExpertsBf16Creator(),
        mm2c::moeFp8Creator(),
        mm2c::moeBf16Creator(),
        mm2c::addRmsNormCreator(),
        mm2c::routerLinearCreator(),
        mm2c::sampleCreator(),
    };
    nbCreators = static_cast<int32_t>(sizeof creators / sizeof creators[0]);
    return creators;
}

extern "C" MM2C_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    mm2c::setLoggerFinder(finder);
}
