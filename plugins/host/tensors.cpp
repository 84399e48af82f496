// Tensor descriptions of the C interface as TensorRT's.
#include "state.h"

#include <algorithm>

using namespace nvinfer1;

namespace
{

Dims dims(int32_t rank, int64_t const* extents)
{
    Dims result{};
    result.nbDims = rank;
    std::copy_n(extents, rank, result.d);
    return result;
}

} // namespace

namespace mm2h
{

PluginTensorDesc described(Mm2hTensor const& tensor)
{
    PluginTensorDesc result{};
    result.dims = dims(tensor.rank, tensor.dims);
    result.type = static_cast<DataType>(tensor.dtype);
    result.format = static_cast<TensorFormat>(tensor.format);
    result.scale = 1.0F;
    return result;
}

std::vector<DynamicPluginTensorDesc> profiled(Mm2hTensor const* tensors, int32_t count)
{
    std::vector<DynamicPluginTensorDesc> result(static_cast<size_t>(count));
    for (size_t i = 0; i < result.size(); ++i)
    {
        Mm2hTensor const& tensor = tensors[i];
        result[i].desc = described(tensor);
        result[i].min = dims(tensor.rank, tensor.min);
        result[i].opt = dims(tensor.rank, tensor.opt);
        result[i].max = dims(tensor.rank, tensor.max);
    }
    return result;
}

bool sound(Mm2hTensor const* tensors, int32_t count)
{
    for (int32_t i = 0; i < count; ++i)
    {
        if (tensors[i].rank < 0 || tensors[i].rank > MM2H_MAX_DIMS)
        {
            fail("tensor " + std::to_string(i) + " has " + std::to_string(tensors[i].rank)
                + " dimensions; TensorRT takes 0 to " + std::to_string(MM2H_MAX_DIMS));
            return false;
        }
    }
    return count >= 0;
}

} // namespace mm2h
