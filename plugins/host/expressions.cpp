#include "expressions.h"

#include <algorithm>
#include <limits>

using nvinfer1::DimensionOperation;
using nvinfer1::IDimensionExpr;

namespace mm2h
{

Extent::Extent(Bounds const& bounds, bool constant)
    : mValue(bounds, constant)
{
    mImpl = &mValue;
}

bool Extent::Value::isConstant() const
{
    return constant;
}

int64_t Extent::Value::getConstantValue() const
{
    return constant ? bounds[1] : std::numeric_limits<int64_t>::min();
}

bool Extent::Value::isSizeTensor() const
{
    return false;
}

ExtentBuilder::ExtentBuilder()
    : mOperations(*this)
{
    mImpl = &mOperations;
}

Extent const* ExtentBuilder::make(Bounds const& bounds, bool constant)
{
    mExtents.push_back(std::make_unique<Extent>(bounds, constant));
    return mExtents.back().get();
}

IDimensionExpr const* ExtentBuilder::Operations::constant(int64_t value)
{
    return owner.make({value, value, value}, true);
}

IDimensionExpr const* ExtentBuilder::Operations::operation(
    DimensionOperation op, IDimensionExpr const& first, IDimensionExpr const& second)
{
    // Every expression of this host is an Extent: a plugin has no other way to make one.
    Bounds const& a = static_cast<Extent const&>(first).bounds();
    Bounds const& b = static_cast<Extent const&>(second).bounds();
    Bounds result{};
    for (size_t i = 0; i < result.size(); ++i)
    {
        bool const division = op == DimensionOperation::kFLOOR_DIV || op == DimensionOperation::kCEIL_DIV;
        if (division && b[i] <= 0)
        {
            owner.mRefused = "its shape rule divides by " + std::to_string(b[i]);
            return nullptr;
        }
        switch (op)
        {
        case DimensionOperation::kSUM: result[i] = a[i] + b[i]; break;
        case DimensionOperation::kPROD: result[i] = a[i] * b[i]; break;
        case DimensionOperation::kMAX: result[i] = std::max(a[i], b[i]); break;
        case DimensionOperation::kMIN: result[i] = std::min(a[i], b[i]); break;
        case DimensionOperation::kSUB: result[i] = a[i] - b[i]; break;
        case DimensionOperation::kEQUAL: result[i] = a[i] == b[i]; break;
        case DimensionOperation::kLESS: result[i] = a[i] < b[i]; break;
        case DimensionOperation::kFLOOR_DIV: result[i] = a[i] / b[i]; break;
        case DimensionOperation::kCEIL_DIV: result[i] = (a[i] + b[i] - 1) / b[i]; break;
        }
    }
    return owner.make(result, first.isConstant() && second.isConstant());
}

IDimensionExpr const* ExtentBuilder::Operations::declareSizeTensor(
    int32_t outputIndex, IDimensionExpr const&, IDimensionExpr const&)
{
    owner.mRefused = "output " + std::to_string(outputIndex)
        + " has an extent that depends on data, which this host does not provide for";
    return nullptr;
}

} // namespace mm2h
