// A plugin's attributes: what its creator accepts, checks and hands on, and what a plan keeps of them.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace mm2c
{

// An attribute of the dialect op: an int32 if a whole number, else a float32. TensorRT's ONNX parser hands int32 over
// whatever the creator announces; int64 is taken too, as other front ends pass it. Values outside [least, most] are
// refused.
struct AttributeSpec
{
    enum class Kind
    {
        kInteger,
        kReal
    };
    char const* name;
    Kind kind;
    bool required;
    double value; // taken when it is absent and not required
    double least;
    double most;
};

AttributeSpec requiredInteger(char const* name, int32_t least, int32_t most);
AttributeSpec optionalInteger(char const* name, int32_t value, int32_t least, int32_t most);
AttributeSpec requiredReal(char const* name, float least, float most);

// Checked values for the specs of one plugin. Copies share nothing.
class Attributes
{
public:
    // `fields` may be null where nothing is required. Refuses unknown, repeated, missing, wrongly typed and
    // out-of-range fields. `specs` lives as long as the library.
    Attributes(std::vector<AttributeSpec> const& specs, nvinfer1::PluginFieldCollection const* fields);

    int32_t integer(char const* name) const;
    float real(char const* name) const;

    // "name=value, …" in the order of the specs.
    std::string text() const;

    // Fields pointing at the values of this very object.
    std::vector<nvinfer1::PluginField> fields() const;

private:
    union Value
    {
        int32_t integer;
        float real;
    };
    size_t index(char const* name, AttributeSpec::Kind kind) const;
    void take(nvinfer1::PluginField const& field, size_t at);

    std::vector<AttributeSpec> const* mSpecs;
    std::vector<Value> mValues;
};

} // namespace mm2c
