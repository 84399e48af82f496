// The C interface beside TensorRT's.
#include "launcher/device.h"
#include "launcher/kernels.h"
#include "launcher/launch.h"
#include "mm2c/api.h"
#include "refusal.h"

#include <algorithm>
#include <cstring>

#ifndef MM2C_SOURCE_DIGEST
#error "the build defines MM2C_SOURCE_DIGEST"
#endif

int mm2c_plugins_abi(void)
{
    return MM2C_PLUGINS_ABI;
}

char const* mm2c_plugins_version(void)
{
    return "0.1.0+" MM2C_SOURCE_DIGEST;
}

char const* mm2c_plugins_last_error(void)
{
    return mm2c::lastError();
}

void mm2c_plugins_set_launcher(Mm2cLauncher launcher, void* user)
{
    mm2c::setLauncher(launcher, user);
}

int mm2c_plugins_set_device(int sm, int sm_count, int max_shared)
{
    return mm2c::guarded("mm2c_plugins_set_device", 1, [&] {
        mm2c::pretendDevice(sm, sm_count, max_shared);
        return 0;
    });
}

void mm2c_plugins_set_pdl(int on)
{
    mm2c::setDependentLaunch(on != 0);
}

size_t mm2c_plugins_kernels(int sm, char* json, size_t size)
{
    return mm2c::guarded("mm2c_plugins_kernels", size_t{0}, [&] {
        std::string const text = mm2c::describeKernels(sm);
        if (json != nullptr && size > 0)
        {
            size_t const kept = std::min(size - 1, text.size());
            std::memcpy(json, text.data(), kept);
            json[kept] = '\0';
        }
        return text.size() + 1;
    });
}
