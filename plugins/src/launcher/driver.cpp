#include "launcher/driver.h"

#include "launcher/driver_types.h"
#include "refusal.h"

#include <dlfcn.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

namespace mm2c
{

struct Driver::Functions
{
    CUresult (*init)(unsigned);
    CUresult (*contextDevice)(CUdevice*);
    CUresult (*deviceAttribute)(int*, int, CUdevice);
    CUresult (*errorString)(CUresult, char const**);
    CUresult (*libraryLoad)(CUlibrary*, void const*, void*, void**, unsigned, void*, void**, unsigned);
    CUresult (*libraryKernel)(CUkernel*, CUlibrary, char const*);
    CUresult (*kernelFunction)(CUfunction*, CUkernel);
    CUresult (*setKernelAttribute)(int, int, CUkernel, CUdevice);
    CUresult (*launch)(CUlaunchConfig const*, CUfunction, void**, void**);
    // later than 12.0, may be absent
    CUresult (*parameter)(CUkernel, size_t, size_t*, size_t*);
    CUresult (*functionLoad)(CUfunction);

    std::mutex mutex; // of what follows, but for launches, which only read `kernels`
    std::map<CUdevice, DriverDevice> devices;
    std::vector<std::atomic<CUkernel>> kernels;      // by image
    std::set<std::pair<KernelImage const*, CUdevice>> ready; // allowed their shared memory and loaded there

    Functions()
        : kernels(static_cast<size_t>(kKernelImageCount))
    {
    }

    void check(CUresult result, char const* doing) const
    {
        if (result != kCudaSuccess)
        {
            char const* text = nullptr;
            errorString(result, &text);
            refuse("the CUDA driver failed to ", doing, ": ", text ? text : "unknown error", " (", result, ")");
        }
    }

    std::atomic<CUkernel>& kernel(KernelImage const& image)
    {
        return kernels[static_cast<size_t>(&image - kKernelImages)];
    }
};

namespace
{
template <typename Function>
bool find(void* library, char const* name, Function& function)
{
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

// The compiler ends its kernels with up to two scratch pointers that `types` does not list.
void checkParameters(
    KernelImage const& image, CUresult (*parameter)(CUkernel, size_t, size_t*, size_t*), CUkernel kernel)
{
    size_t const listed = std::strlen(image.types);
    size_t count = 0;
    size_t offset = 0;
    size_t size = 0;
    while (count <= listed + 2 && parameter(kernel, count, &offset, &size) == kCudaSuccess)
    {
        if (count < listed)
        {
            size_t const wanted = image.types[count] == 'p' || image.types[count] == 'l' ? 8 : 4;
            if (size != wanted)
            {
                refuse(image.variant, ": parameter ", count, " has ", size, " bytes, the table says ", wanted);
            }
        }
        ++count;
    }
    if (count < listed || count > listed + 2)
    {
        refuse(image.variant, " takes ", count, " parameters, the table lists ", listed);
    }
}
} // namespace

Driver::Driver()
    : mFunctions(nullptr)
{
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
    {
        refuse("no NVIDIA driver here: ", dlerror());
    }
    auto* const f = new Functions; // for the process's life, as is the driver
    bool const complete = find(library, "cuInit", f->init) && find(library, "cuCtxGetDevice", f->contextDevice)
        && find(library, "cuDeviceGetAttribute", f->deviceAttribute)
        && find(library, "cuGetErrorString", f->errorString) && find(library, "cuLibraryLoadData", f->libraryLoad)
        && find(library, "cuLibraryGetKernel", f->libraryKernel)
        && find(library, "cuKernelGetFunction", f->kernelFunction)
        && find(library, "cuKernelSetAttribute", f->setKernelAttribute)
        && find(library, "cuLaunchKernelEx", f->launch);
    if (!complete)
    {
        delete f;
        refuse("the NVIDIA driver is older than CUDA 12.0; update it");
    }
    find(library, "cuKernelGetParamInfo", f->parameter);
    find(library, "cuFuncLoad", f->functionLoad);
    CUresult const result = f->init(0);
    if (result != kCudaSuccess)
    {
        char const* text = nullptr;
        f->errorString(result, &text);
        delete f;
        refuse("the NVIDIA driver does not start: ", text ? text : "unknown error");
    }
    mFunctions = f;
}

Driver& Driver::get()
{
    static Driver driver; // a refusal leaves it unmade, to be tried again
    return driver;
}

DriverDevice Driver::currentDevice()
{
    CUdevice device = 0;
    if (mFunctions->contextDevice(&device) != kCudaSuccess)
    {
        refuse("this thread has no current CUDA context; call cudaSetDevice or torch.cuda.set_device first");
    }
    std::lock_guard<std::mutex> lock(mFunctions->mutex);
    auto const known = mFunctions->devices.find(device);
    if (known != mFunctions->devices.end())
    {
        return known->second;
    }
    auto const attribute = [&](int which) {
        int value = 0;
        mFunctions->check(mFunctions->deviceAttribute(&value, which, device), "describe the device");
        return value;
    };
    DriverDevice const found{attribute(kComputeCapabilityMajor) * 10 + attribute(kComputeCapabilityMinor),
        attribute(kMultiprocessorCount), attribute(kMaxSharedMemoryOptIn)};
    mFunctions->devices.emplace(device, found);
    return found;
}

void Driver::load(KernelImage const& image)
{
    Functions& f = *mFunctions;
    CUdevice device = 0;
    f.check(f.contextDevice(&device), "find the current context");
    std::lock_guard<std::mutex> lock(f.mutex);
    if (f.ready.count({&image, device}) != 0)
    {
        return;
    }
    CUkernel kernel = f.kernel(image).load();
    if (kernel == nullptr)
    {
        CUlibrary library = nullptr;
        f.check(f.libraryLoad(&library, image.cubin, nullptr, nullptr, 0, nullptr, nullptr, 0), "load a kernel");
        f.check(f.libraryKernel(&kernel, library, image.entry), "find a kernel's entry");
        if (f.parameter != nullptr)
        {
            checkParameters(image, f.parameter, kernel);
        }
    }
    f.check(f.setKernelAttribute(kMaxDynamicSharedSize, image.shared, kernel, device), "reserve shared memory");
    // a kernel reaches a context when first asked for, which a capturing stream may not do
    CUfunction function = nullptr;
    f.check(f.kernelFunction(&function, kernel), "place a kernel");
    if (f.functionLoad != nullptr)
    {
        f.check(f.functionLoad(function), "place a kernel");
    }
    f.kernel(image).store(kernel);
    f.ready.insert({&image, device});
}

void Driver::launch(
    KernelImage const& image, uint32_t const (&grid)[3], void** arguments, void* stream, bool dependent)
{
    CUkernel const kernel = mFunctions->kernel(image).load(std::memory_order_acquire);
    if (kernel == nullptr)
    {
        refuse(image.variant, " was not loaded; the plugin was not attached to a context on this device");
    }
    CUlaunchAttribute attribute{};
    attribute.id = kProgrammaticStreamSerialization;
    attribute.value.flag = 1;
    CUlaunchConfig config{};
    config.gridX = grid[0];
    config.gridY = grid[1];
    config.gridZ = grid[2];
    config.blockX = static_cast<unsigned>(image.warps) * 32;
    config.blockY = 1;
    config.blockZ = 1;
    config.sharedBytes = static_cast<unsigned>(image.shared);
    config.stream = stream;
    config.attributes = dependent ? &attribute : nullptr;
    config.attributeCount = dependent ? 1 : 0;
    // a CUkernel stands for its function in the current context
    auto const result = mFunctions->launch(&config, reinterpret_cast<CUfunction>(kernel), arguments, nullptr);
    mFunctions->check(result, image.variant);
}

} // namespace mm2c
