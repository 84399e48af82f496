// The CUDA driver, opened at first use, so that the library needs neither it nor the CUDA runtime to load.
#pragma once

#include "mm2c/kernel_table.h"

#include <cstdint>

namespace mm2c
{

struct DriverDevice
{
    int sm;
    int multiprocessors;
    int maxShared;
};

class Driver
{
public:
    // Opens libcuda.so.1 once for the process; refuses when it is absent or older than CUDA 12.0's.
    static Driver& get();

    // The current context's device; refuses a thread without a current context.
    DriverDevice currentDevice();

    // Loads `image` into the process and the current context, and allows it its shared memory. May take milliseconds
    // and must not run while a stream is being captured. Repeating it is cheap.
    void load(KernelImage const& image);

    // Launches a loaded kernel; makes no allocation and no synchronisation. `arguments` holds pointers to the values,
    // followed by those of two null pointers for the compiler's scratch parameters.
    void launch(KernelImage const& image, uint32_t const (&grid)[3], void** arguments, void* stream, bool dependent);

private:
    Driver();
    struct Functions;
    Functions* mFunctions;
};

} // namespace mm2c
