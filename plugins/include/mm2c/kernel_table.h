// What the generated kernel_table.cpp defines: the compiled kernels and the tile tables of every architecture.
#pragma once

namespace mm2c
{

// A compile-time constant of a kernel; booleans are 0 and 1.
struct Constant
{
    char const* name;
    int value;
};

// One compiled variant. `constants` hold those of the kernel and also num_warps and num_stages.
struct KernelImage
{
    char const* kernel;
    char const* variant; // unique among the images of one sm
    int sm;              // 80, 89, 90, 100 or 120
    unsigned char const* cubin;
    unsigned char const* cubin_end;
    char const* entry; // name of the function in the cubin
    int warps;         // a block is warps * 32 threads
    int shared;        // dynamic shared memory in bytes
    char const* types; // a letter an argument as in Mm2cLaunch, without the compiler's trailing scratch pointers
    Constant const* constants;
    int n_constants;
};

// One row of an op's tile table. The default row for T tokens is the first that is no alternative and has
// T <= max_tokens; row i of an op on an sm, alternatives counted, is tactic i + 1. A row's constants (num_warps and
// num_stages among them) choose the image.
struct TileRow
{
    char const* op;
    int sm;
    int max_tokens;
    int alternative;
    Constant const* constants;
    int n_constants;
};

extern KernelImage const kKernelImages[];
extern int const kKernelImageCount;
extern TileRow const kTileRows[];
extern int const kTileRowCount;

} // namespace mm2c
