/* A libcuda.so.1 that runs nothing: it answers as the environment says and writes each call to $FAKE_CUDA_LOG.
 *   FAKE_CUDA_SM          compute capability, as 90
 *   FAKE_CUDA_PARAMETERS  parameters that every kernel claims to have
 *   FAKE_CUDA_NO_CONTEXT  the thread has no current context
 *   FAKE_CUDA_LAUNCH      result of launches
 * Compiled with -DOLD it lacks what CUDA 12.0 brought.
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(char const* name, int missing)
{
    char const* text = getenv(name);
    return text != NULL ? atoi(text) : missing;
}

static void note(char const* format, char const* text, long value)
{
    FILE* log = fopen(getenv("FAKE_CUDA_LOG"), "a");
    fprintf(log, format, text, value);
    fputc('\n', log);
    fclose(log);
}

int cuInit(unsigned flags)
{
    return (int)flags;
}

int cuCtxGetDevice(int* device)
{
    *device = 0;
    return number("FAKE_CUDA_NO_CONTEXT", 0) ? 201 : 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device)
{
    int const sm = number("FAKE_CUDA_SM", 90);
    (void)device;
    *value = attribute == 75 ? sm / 10 : attribute == 76 ? sm % 10 : attribute == 16 ? 132 : 232448;
    return 0;
}

int cuGetErrorString(int result, char const** text)
{
    *text = result == 700 ? "an illegal memory access was encountered" : "another error";
    return 0;
}

int cuKernelGetFunction(void** function, void* kernel)
{
    *function = kernel;
    return 0;
}

int cuKernelSetAttribute(int attribute, int value, void* kernel, int device)
{
    (void)device;
    note(attribute == 8 ? "shared %s %ld" : "attribute %s %ld", kernel, value);
    return 0;
}

#ifndef OLD
int cuLibraryLoadData(void** library, char const* code, int* a, void** b, unsigned c, int* d, void** e, unsigned f)
{
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    *library = (void*)code;
    return memcmp(code, "\177ELF", 4) == 0 ? 0 : 200;
}

int cuLibraryGetKernel(void** kernel, void* library, char const* name)
{
    (void)library;
    note("load %s", name, 0);
    *kernel = strdup(name); /* a kernel is its name */
    return 0;
}

int cuKernelGetParamInfo(void* kernel, size_t index, size_t* offset, size_t* size)
{
    (void)kernel;
    *offset = 8 * index;
    /* add_rms_norm: five pointers, int32, float32, then the compiler's scratch pointers */
    *size = index == 5 || index == 6 ? 4 : 8;
    return index < (size_t)number("FAKE_CUDA_PARAMETERS", 9) ? 0 : 1;
}
#endif

struct Attribute
{
    int id;
    int pad;
    int value[16];
};

struct Config
{
    unsigned grid[3];
    unsigned block[3];
    unsigned shared;
    void* stream;
    struct Attribute* attributes;
    unsigned count;
};

int cuLaunchKernelEx(struct Config const* config, void* function, void** arguments, void** extra)
{
    int const parameters = number("FAKE_CUDA_PARAMETERS", 9);
    char text[256];
    int scratch = 1;
    for (int i = 7; i < parameters; ++i)
    {
        scratch = scratch && *(void**)arguments[i] == NULL;
    }
    snprintf(text, sizeof text, "%s grid %u %u %u block %u shared %u width %d scratch %d attribute %d", (char*)function,
        config->grid[0], config->grid[1], config->grid[2], config->block[0] * config->block[1] * config->block[2],
        config->shared, *(int*)arguments[5], scratch,
        config->count == 1 && config->attributes[0].value[0] == 1 ? config->attributes[0].id : (int)config->count);
    note("launch %s stream %ld", text, (long)config->stream);
    return extra == NULL ? number("FAKE_CUDA_LAUNCH", 0) : 1;
}
