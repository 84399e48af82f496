#include "launcher/launch.h"

#include "launcher/device.h"
#include "launcher/driver.h"
#include "refusal.h"

#include <atomic>
#include <cstring>
#include <mutex>

namespace mm2c
{
namespace
{
constexpr int64_t kMaxGridX = INT32_MAX;
constexpr int64_t kMaxGridYZ = 65535;
constexpr int kFirstDependentLaunchSm = 90;

struct Taken
{
    Mm2cLauncher launcher;
    void* user;
};
std::mutex gMutex;
Taken gTaken{};
std::atomic<bool> gDependent{false};

Taken taken()
{
    std::lock_guard<std::mutex> lock(gMutex);
    return gTaken;
}
} // namespace

void setLauncher(Mm2cLauncher launcher, void* user)
{
    std::lock_guard<std::mutex> lock(gMutex);
    gTaken = {launcher, user};
}

void setDependentLaunch(bool on)
{
    gDependent = on;
}

void loadKernel(char const* kernel)
{
    if (taken().launcher != nullptr)
    {
        return;
    }
    for (KernelImage const* image : imagesOf(kernel, currentDevice().imageSm))
    {
        Driver::get().load(*image);
    }
}

void launchUntyped(
    KernelImage const& image, Grid grid, char const* types, void** values, int count, void* stream)
{
    if (std::strcmp(types, image.types) != 0)
    {
        refuse(image.variant, " takes arguments ", image.types, ", the library would pass ", types);
    }
    if (grid.x < 1 || grid.x > kMaxGridX || grid.y < 1 || grid.y > kMaxGridYZ || grid.z < 1 || grid.z > kMaxGridYZ)
    {
        refuse(image.variant, ": a grid of ", grid.x, " x ", grid.y, " x ", grid.z, " is beyond the device's limits");
    }
    uint32_t const blocks[3]
        = {static_cast<uint32_t>(grid.x), static_cast<uint32_t>(grid.y), static_cast<uint32_t>(grid.z)};
    Taken const host = taken();
    if (host.launcher != nullptr)
    {
        Mm2cLaunch const launch{image.kernel, image.variant, {blocks[0], blocks[1], blocks[2]},
            static_cast<uint32_t>(image.warps) * 32, static_cast<uint32_t>(image.shared), count, types, values};
        int const result = host.launcher(&launch, stream, host.user);
        if (result != 0)
        {
            refuse("the host's launcher failed at ", image.variant, " with ", result);
        }
        return;
    }
    void* nothing = nullptr;
    values[count] = &nothing;
    values[count + 1] = &nothing;
    bool const dependent = gDependent.load(std::memory_order_relaxed) && image.sm >= kFirstDependentLaunchSm;
    Driver::get().launch(image, blocks, values, stream, dependent);
}

} // namespace mm2c
