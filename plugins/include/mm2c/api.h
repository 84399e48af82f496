/* C interface of libmm2c_plugins.so, beside TensorRT's own getCreators and setLoggerFinder.
 *
 * TensorRT needs none of it. The host (libmm2c_host.so) and tests use it to read the library's identity and errors,
 * to pretend a device and to take over the launching of kernels on a machine without a GPU.
 */
#ifndef MM2C_API_H
#define MM2C_API_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MM2C_API __attribute__((visibility("default")))
#else
#define MM2C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a symbol below, Mm2cLaunch or the fields of a creator change incompatibly. */
#define MM2C_PLUGINS_ABI 1

/* One kernel launch. Everything it points to lives until the launcher returns. */
typedef struct Mm2cLaunch
{
    char const* kernel;  /* e.g. "moe_gate_up" */
    char const* variant; /* name of the compiled variant, unique per architecture */
    uint32_t grid[3];
    uint32_t block;  /* threads of a block; one dimension */
    uint32_t shared; /* dynamic shared memory in bytes */
    int32_t n_args;
    char const* types;  /* a letter an argument: p pointer, i int32, l int64, f float32; zero-terminated */
    void* const* args;  /* n_args pointers to the values, as cuLaunchKernel takes them */
} Mm2cLaunch;

/* Returns 0, or anything else to make the plugin's enqueue fail. `stream` is the CUstream given to enqueue. */
typedef int (*Mm2cLauncher)(Mm2cLaunch const* launch, void* stream, void* user);

/* MM2C_PLUGINS_ABI of the library. */
MM2C_API int mm2c_plugins_abi(void);

/* "0.1.0+<12 hexadecimal digits>": the digits are the start of the digest of the kernels' and the library's sources. */
MM2C_API char const* mm2c_plugins_version(void);

/* What the last failed call of this thread, through any interface of this library, had to say. Never null; valid until
 * the thread's next call. */
MM2C_API char const* mm2c_plugins_last_error(void);

/* Launches kernels through `launcher` from now on; null restores the CUDA driver's. For the whole process. With a
 * launcher set no module is loaded; with a pretended device too, no driver is opened. */
MM2C_API void mm2c_plugins_set_launcher(Mm2cLauncher launcher, void* user);

/* Pretends a device for the whole process: `sm` as 90 for 9.0, its number of multiprocessors, and the most dynamic
 * shared memory of a block in bytes. sm 0: ask the CUDA driver about the current context's device again. Returns 0, or
 * 1 for a device without kernels, in which case nothing changes. */
MM2C_API int mm2c_plugins_set_device(int sm, int sm_count, int max_shared);

/* Programmatic dependent launch on devices that know it (9.0 and later). Off unless set. */
MM2C_API void mm2c_plugins_set_pdl(int on);

/* Writes the kernels embedded for architecture `sm` (0: all) as a JSON array of
 * {"kernel", "variant", "sm", "block", "shared", "bytes", "types", "constants": {name: value}}, cut to `size` bytes
 * with its zero. Returns the bytes the whole text needs, including the zero. `json` may be null when `size` is 0. */
MM2C_API size_t mm2c_plugins_kernels(int sm, char* json, size_t size);

#ifdef __cplusplus
}
#endif

#endif
