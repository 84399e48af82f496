// The little of the CUDA driver's binary interface (12.0 and later) that the launcher uses.
#pragma once

#include <cstddef>

namespace mm2c
{

using CUresult = int;
using CUdevice = int;
struct CUlib_st;
struct CUkern_st;
struct CUfunc_st;
using CUlibrary = CUlib_st*;
using CUkernel = CUkern_st*;
using CUfunction = CUfunc_st*;

constexpr CUresult kCudaSuccess = 0;

// CUdevice_attribute
constexpr int kMultiprocessorCount = 16;
constexpr int kComputeCapabilityMajor = 75;
constexpr int kComputeCapabilityMinor = 76;
constexpr int kMaxSharedMemoryOptIn = 97;

// CUfunction_attribute
constexpr int kMaxDynamicSharedSize = 8;

// CUlaunchAttributeID
constexpr int kProgrammaticStreamSerialization = 6;

struct CUlaunchAttribute
{
    int id;
    char pad[8 - sizeof(int)];
    union
    {
        char bytes[64];
        int flag;
    } value;
};
static_assert(sizeof(CUlaunchAttribute) == 72, "as the driver lays it out");

struct CUlaunchConfig
{
    unsigned gridX;
    unsigned gridY;
    unsigned gridZ;
    unsigned blockX;
    unsigned blockY;
    unsigned blockZ;
    unsigned sharedBytes;
    void* stream;
    CUlaunchAttribute* attributes;
    unsigned attributeCount;
};
static_assert(offsetof(CUlaunchConfig, stream) == 32 && sizeof(CUlaunchConfig) == 56, "as the driver lays it out");

} // namespace mm2c
