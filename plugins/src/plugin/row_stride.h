// Inputs that are columns of a wider tensor: an attribute tells the distance of their rows.
#pragma once

#include "plugin/attributes.h"
#include "refusal.h"

namespace mm2c
{

// The stride in elements of the rows of an input; 0: they follow each other.
inline AttributeSpec rowStride(char const* name)
{
    return optionalInteger(name, 0, 0, INT32_MAX);
}

// The stride, or the width if it is 0. Refuses one that is too short or no multiple of 16.
inline int32_t takeStride(Attributes const& attributes, char const* name, int64_t width)
{
    int32_t const stride = attributes.integer(name);
    if (stride != 0 && (stride < width || stride % 16 != 0))
    {
        refuse(name, " must be a multiple of 16 and at least the width ", width, ", got ", stride);
    }
    return stride == 0 ? static_cast<int32_t>(width) : stride;
}

} // namespace mm2c
