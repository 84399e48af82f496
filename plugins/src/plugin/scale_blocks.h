// Block-scaled weights: the attributes of their blocks and the shape of their scales.
#pragma once

#include "plugin/attributes.h"
#include "plugin/tensors.h"
#include "refusal.h"

namespace mm2c
{

// Sides of the blocks of a weight's last two axes that share a scale.
struct ScaleBlocks
{
    int32_t n;
    int32_t k;

    explicit ScaleBlocks(Attributes const& attributes)
        : n(attributes.integer("block_n"))
        , k(attributes.integer("block_k"))
    {
        for (int32_t side : {n, k})
        {
            if (side != 64 && side != 128)
            {
                refuse("scale blocks have sides of 64 or 128, got ", n, " x ", k);
            }
        }
    }

    int64_t rows(int64_t width) const
    {
        return ceilDiv(width, n);
    }
    int64_t columns(int64_t width) const
    {
        return ceilDiv(width, k);
    }
};

inline std::vector<AttributeSpec> scaleBlockAttributes()
{
    return {requiredInteger("block_n", 64, 128), requiredInteger("block_k", 64, 128)};
}

} // namespace mm2c
