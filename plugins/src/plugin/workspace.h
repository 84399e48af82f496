// Dividing a plugin's workspace into slices.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mm2c
{

class WorkspaceLayout
{
public:
    // Offset of a new slice of `count` elements of `size` bytes.
    size_t take(int64_t count, size_t size)
    {
        size_t const offset = mBytes;
        size_t const end = offset + static_cast<size_t>(count) * size;
        mBytes = (end + kAlignment - 1) / kAlignment * kAlignment;
        return offset;
    }

    size_t bytes() const
    {
        return mBytes;
    }

private:
    static constexpr size_t kAlignment = 256;
    size_t mBytes = 0;
};

} // namespace mm2c
