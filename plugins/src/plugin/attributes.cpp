#include "plugin/attributes.h"

#include "refusal.h"

#include <cstring>
#include <sstream>

namespace mm2c
{
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using Kind = AttributeSpec::Kind;

AttributeSpec requiredInteger(char const* name, int32_t least, int32_t most)
{
    return {name, Kind::kInteger, true, 0, static_cast<double>(least), static_cast<double>(most)};
}

AttributeSpec optionalInteger(char const* name, int32_t value, int32_t least, int32_t most)
{
    return {name, Kind::kInteger, false, static_cast<double>(value), static_cast<double>(least),
        static_cast<double>(most)};
}

AttributeSpec requiredReal(char const* name, float least, float most)
{
    return {name, Kind::kReal, true, 0, least, most};
}

Attributes::Attributes(std::vector<AttributeSpec> const& specs, nvinfer1::PluginFieldCollection const* fields)
    : mSpecs(&specs)
    , mValues(specs.size())
{
    std::vector<bool> given(specs.size(), false);
    int32_t const count = fields == nullptr ? 0 : fields->nbFields;
    for (int32_t i = 0; i < count; ++i)
    {
        PluginField const& field = fields->fields[i];
        if (field.name == nullptr)
        {
            refuse("field ", i, " has no name");
        }
        size_t at = 0;
        while (at < specs.size() && std::strcmp(specs[at].name, field.name) != 0)
        {
            ++at;
        }
        if (at == specs.size())
        {
            refuse("there is no attribute ", field.name);
        }
        if (given[at])
        {
            refuse("attribute ", field.name, " is given twice");
        }
        given[at] = true;
        take(field, at);
    }
    for (size_t at = 0; at < specs.size(); ++at)
    {
        if (given[at])
        {
            continue;
        }
        if (specs[at].required)
        {
            refuse("attribute ", specs[at].name, " is missing");
        }
        if (specs[at].kind == Kind::kInteger)
        {
            mValues[at].integer = static_cast<int32_t>(specs[at].value);
        }
        else
        {
            mValues[at].real = static_cast<float>(specs[at].value);
        }
    }
}

void Attributes::take(PluginField const& field, size_t at)
{
    AttributeSpec const& spec = (*mSpecs)[at];
    if (field.data == nullptr || field.length != 1)
    {
        refuse("attribute ", spec.name, " must be one number, got ", field.data == nullptr ? 0 : field.length);
    }
    auto const checked = [&](double value) {
        if (!(value >= spec.least && value <= spec.most)) // written so that NaN fails
        {
            refuse("attribute ", spec.name, " must be from ", spec.least, " to ", spec.most, ", got ", value);
        }
        return value;
    };
    // data need not be aligned
    auto const read = [&](auto value) {
        std::memcpy(&value, field.data, sizeof value);
        return value;
    };
    if (spec.kind == Kind::kInteger && field.type == PluginFieldType::kINT32)
    {
        mValues[at].integer = static_cast<int32_t>(checked(read(int32_t{})));
    }
    else if (spec.kind == Kind::kInteger && field.type == PluginFieldType::kINT64)
    {
        // as a double it may be rounded, but never into the range, whose ends are int32
        mValues[at].integer = static_cast<int32_t>(checked(static_cast<double>(read(int64_t{}))));
    }
    else if (spec.kind == Kind::kReal && field.type == PluginFieldType::kFLOAT32)
    {
        mValues[at].real = static_cast<float>(checked(read(float{})));
    }
    else
    {
        refuse("attribute ", spec.name, " must be ", spec.kind == Kind::kInteger ? "int32 or int64" : "float32",
            ", got field type ", static_cast<int32_t>(field.type));
    }
}

size_t Attributes::index(char const* name, Kind kind) const
{
    for (size_t at = 0; at < mSpecs->size(); ++at)
    {
        if (std::strcmp((*mSpecs)[at].name, name) == 0 && (*mSpecs)[at].kind == kind)
        {
            return at;
        }
    }
    refuse("the plugin has no attribute ", name);
}

int32_t Attributes::integer(char const* name) const
{
    return mValues[index(name, Kind::kInteger)].integer;
}

float Attributes::real(char const* name) const
{
    return mValues[index(name, Kind::kReal)].real;
}

std::string Attributes::text() const
{
    std::ostringstream text;
    text.precision(9); // enough to tell every float32
    for (size_t at = 0; at < mSpecs->size(); ++at)
    {
        AttributeSpec const& spec = (*mSpecs)[at];
        text << (at == 0 ? "" : ", ") << spec.name << "=";
        if (spec.kind == Kind::kInteger)
        {
            text << mValues[at].integer;
        }
        else
        {
            text << mValues[at].real;
        }
    }
    return text.str();
}

std::vector<PluginField> Attributes::fields() const
{
    std::vector<PluginField> fields;
    for (size_t at = 0; at < mSpecs->size(); ++at)
    {
        bool const whole = (*mSpecs)[at].kind == Kind::kInteger;
        fields.emplace_back(
            (*mSpecs)[at].name, &mValues[at], whole ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32, 1);
    }
    return fields;
}

} // namespace mm2c
