// Extents as a plugin's shape rule sees them: constants, or unknowns with an optimisation profile's bounds.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mm2h
{

// The value at the profile's min, opt and max.
using Bounds = std::array<int64_t, 3>;

class Extent : public nvinfer1::IDimensionExpr
{
public:
    Extent(Bounds const& bounds, bool constant);
    ~Extent() noexcept override = default;

    Bounds const& bounds() const
    {
        return mValue.bounds;
    }

private:
    struct Value : nvinfer1::apiv::VDimensionExpr
    {
        Value(Bounds const& b, bool c)
            : bounds(b)
            , constant(c)
        {
        }
        bool isConstant() const override;
        // As TensorRT does, the smallest int64 for an extent that is not constant.
        int64_t getConstantValue() const override;
        bool isSizeTensor() const override;

        Bounds bounds;
        bool constant;
    };
    Value mValue;
};

// Makes extents and owns them; they live as long as it does.
class ExtentBuilder : public nvinfer1::IExprBuilder
{
public:
    ExtentBuilder();
    ~ExtentBuilder() noexcept override = default;

    Extent const* make(Bounds const& bounds, bool constant);
    // Empty, or why an operation gave no extent.
    std::string const& refused() const
    {
        return mRefused;
    }

private:
    struct Operations : nvinfer1::apiv::VExprBuilder
    {
        explicit Operations(ExtentBuilder& builder)
            : owner(builder)
        {
        }
        nvinfer1::IDimensionExpr const* constant(int64_t value) override;
        nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation op,
            nvinfer1::IDimensionExpr const& first, nvinfer1::IDimensionExpr const& second) override;
        nvinfer1::IDimensionExpr const* declareSizeTensor(int32_t outputIndex, nvinfer1::IDimensionExpr const& opt,
            nvinfer1::IDimensionExpr const& upper) override;

        ExtentBuilder& owner;
    };
    Operations mOperations;
    std::vector<std::unique_ptr<Extent>> mExtents;
    std::string mRefused;
};

} // namespace mm2h
