// Tensors as plugins see them: what is declared, and checks of what comes.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace mm2c
{

using nvinfer1::DataType;
using Desc = nvinfer1::PluginTensorDesc;

constexpr int kAnyRank = -1;
constexpr int kNoInput = -1;

// A declared input or output: the types it may have, all in linear format. `like`: the input whose type it must share.
struct TensorSpec
{
    char const* name;
    std::vector<DataType> types;
    int rank = kAnyRank;
    int like = kNoInput;
};

char const* nameOf(DataType type);
std::string textOf(nvinfer1::Dims const& dims);

// Elements of the tensor; refuses a dimension that is unknown or negative.
int64_t volume(Desc const& desc);

// Product of all dimensions but the last: the tokens of [..., width].
int64_t rows(Desc const& desc);
int64_t lastDim(Desc const& desc);

// Refuses dimensions other than `wanted`, in which -1 stands for any.
void expectShape(TensorSpec const& spec, Desc const& desc, std::vector<int64_t> const& wanted);

// Refuses what kernels could not address in a 32-bit int, and gives it as one.
int32_t narrow(char const* what, int64_t value);

// Refuses `value` unless it is a positive multiple of `unit`.
void expectMultiple(char const* what, int64_t value, int64_t unit);

int64_t ceilDiv(int64_t value, int64_t unit);

} // namespace mm2c
