#include "launcher/device.h"

#include "launcher/driver.h"
#include "refusal.h"

#include <mutex>

namespace mm2c
{
namespace
{
std::mutex gMutex;
Device gPretended{}; // sm 0: none

// Cubins run on their own compute capability and, from 8.x down to the minor they were made for, on later minors.
// sm_90 and above use architecture-specific instructions, so only that very device will do.
int imageArchitecture(int sm)
{
    switch (sm)
    {
    case 80:
    case 86:
    case 87: return 80;
    case 89:
    case 90:
    case 100:
    case 120: return sm;
    default:
        refuse("compute capability ", sm / 10, ".", sm % 10,
            " is not supported; the kernels are made for 8.0, 8.6, 8.7, 8.9, 9.0, 10.0 and 12.0");
    }
}
} // namespace

Device currentDevice()
{
    {
        std::lock_guard<std::mutex> lock(gMutex);
        if (gPretended.sm != 0)
        {
            return gPretended;
        }
    }
    DriverDevice const found = Driver::get().currentDevice();
    return {found.sm, imageArchitecture(found.sm), found.multiprocessors, found.maxShared};
}

void pretendDevice(int sm, int multiprocessors, int maxShared)
{
    Device const device = sm == 0 ? Device{} : Device{sm, imageArchitecture(sm), multiprocessors, maxShared};
    if (sm != 0 && (multiprocessors < 1 || maxShared < 1))
    {
        refuse("a pretended device needs multiprocessors and shared memory, got ", multiprocessors, " and ", maxShared);
    }
    std::lock_guard<std::mutex> lock(gMutex);
    gPretended = device;
}

} // namespace mm2c
