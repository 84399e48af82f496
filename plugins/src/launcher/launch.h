// Launching a chosen kernel on a stream, through the CUDA driver or whoever took its place.
#pragma once

#include "launcher/kernels.h"
#include "mm2c/api.h"

#include <cstdint>
#include <type_traits>

namespace mm2c
{

// As mm2c_plugins_set_launcher and mm2c_plugins_set_pdl.
void setLauncher(Mm2cLauncher launcher, void* user);
void setDependentLaunch(bool on);

// Loads every image of `kernel` for the current device, unless a launcher of the host's is set.
void loadKernel(char const* kernel);

struct Grid
{
    int64_t x;
    int64_t y = 1;
    int64_t z = 1;
};

// `types` and `values` as in Mm2cLaunch; `values` has room for two more, which this fills with the compiler's scratch
// pointers. Refuses arguments other than the kernel's and grids beyond the device's limits.
void launchUntyped(
    KernelImage const& image, Grid grid, char const* types, void** values, int count, void* stream);

namespace launcher
{
template <typename T>
constexpr char letter()
{
    static_assert(std::is_pointer<T>::value || std::is_same<T, int32_t>::value || std::is_same<T, int64_t>::value
            || std::is_same<T, float>::value,
        "kernels take pointers, int32, int64 and float32");
    return std::is_pointer<T>::value ? 'p' : std::is_same<T, int32_t>::value ? 'i'
        : std::is_same<T, int64_t>::value                                    ? 'l'
                                                                             : 'f';
}
} // namespace launcher

template <typename... Arguments>
void launch(void* stream, KernelImage const& image, Grid grid, Arguments... arguments)
{
    static constexpr char types[] = {launcher::letter<Arguments>()..., '\0'};
    void* values[] = {const_cast<void*>(static_cast<void const*>(&arguments))..., nullptr, nullptr};
    launchUntyped(image, grid, types, values, static_cast<int>(sizeof...(Arguments)), stream);
}

} // namespace mm2c
