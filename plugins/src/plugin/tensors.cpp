#include "plugin/tensors.h"

#include "refusal.h"

#include <sstream>

namespace mm2c
{

char const* nameOf(DataType type)
{
    switch (type)
    {
    case DataType::kFLOAT: return "f32";
    case DataType::kHALF: return "f16";
    case DataType::kBF16: return "bf16";
    case DataType::kFP8: return "e4m3";
    case DataType::kINT32: return "i32";
    case DataType::kINT64: return "i64";
    case DataType::kINT8: return "i8";
    case DataType::kUINT8: return "u8";
    case DataType::kBOOL: return "bool";
    default: return "a type these plugins do not know";
    }
}

std::string textOf(nvinfer1::Dims const& dims)
{
    std::ostringstream text;
    text << "[";
    for (int32_t i = 0; i < dims.nbDims; ++i)
    {
        text << (i == 0 ? "" : ", ") << dims.d[i];
    }
    text << "]";
    return text.str();
}

int64_t volume(Desc const& desc)
{
    int64_t elements = 1;
    for (int32_t i = 0; i < desc.dims.nbDims; ++i)
    {
        if (desc.dims.d[i] < 0)
        {
            refuse("a shape is not known yet: ", textOf(desc.dims));
        }
        elements *= desc.dims.d[i];
    }
    return elements;
}

int64_t rows(Desc const& desc)
{
    int64_t count = 1;
    for (int32_t i = 0; i + 1 < desc.dims.nbDims; ++i)
    {
        count *= desc.dims.d[i];
    }
    return count;
}

int64_t lastDim(Desc const& desc)
{
    return desc.dims.d[desc.dims.nbDims - 1];
}

void expectShape(TensorSpec const& spec, Desc const& desc, std::vector<int64_t> const& wanted)
{
    bool fits = desc.dims.nbDims == static_cast<int32_t>(wanted.size());
    for (size_t i = 0; fits && i < wanted.size(); ++i)
    {
        fits = wanted[i] < 0 || desc.dims.d[i] == wanted[i];
    }
    if (!fits)
    {
        std::ostringstream text;
        for (size_t i = 0; i < wanted.size(); ++i)
        {
            text << (i == 0 ? "" : ", ");
            if (wanted[i] < 0)
            {
                text << "any";
            }
            else
            {
                text << wanted[i];
            }
        }
        refuse(spec.name, " must have shape [", text.str(), "], got ", textOf(desc.dims));
    }
}

int32_t narrow(char const* what, int64_t value)
{
    if (value < 0 || value > INT32_MAX)
    {
        refuse(what, " is ", value, ", beyond what the kernels count");
    }
    return static_cast<int32_t>(value);
}

void expectMultiple(char const* what, int64_t value, int64_t unit)
{
    if (value < 1 || value % unit != 0)
    {
        refuse(what, " must be a positive multiple of ", unit, ", got ", value);
    }
}

int64_t ceilDiv(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit;
}

} // namespace mm2c
