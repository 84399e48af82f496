// The device that kernels are chosen for: the current CUDA context's, or a pretended one.
#pragma once

namespace mm2c
{

struct Device
{
    int sm;               // compute capability as 90 for 9.0
    int imageSm;          // architecture whose kernels run on it: 80, 89, 90, 100 or 120
    int multiprocessors;
    int maxShared;        // dynamic shared memory a block can have, in bytes
};

// Refuses an architecture without kernels, and a machine without a driver unless a device is pretended.
Device currentDevice();

// As mm2c_plugins_set_device. Refuses an architecture without kernels.
void pretendDevice(int sm, int multiprocessors, int maxShared);

} // namespace mm2c
