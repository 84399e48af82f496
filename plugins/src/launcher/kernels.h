// Looking up compiled kernels and rows of the tile tables.
#pragma once

#include "launcher/device.h"
#include "mm2c/kernel_table.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace mm2c
{

using Constants = std::vector<Constant>;

// A row of an op's tile table with the tactic that stands for it.
struct Tile
{
    TileRow const* row;
    int tactic;

    // Refuses a name the row lacks.
    int operator[](char const* constant) const;
    // The row's constants, to choose an image by, with those of `more` added or in place of its own.
    Constants with(Constants const& more) const;
};

// All rows of `op` for architecture `sm` in their order; empty if there are none.
std::vector<Tile> const& tiles(char const* op, int sm);

// Whether a row suits the widths at hand.
using Suits = std::function<bool(Tile const&)>;
inline bool anyTile(Tile const&)
{
    return true;
}

// `op` for architecture `sm`: among the suiting rows whose max_tokens is at least `tokens`, that of `tactic` (0: none),
// else the first that is no alternative, else the first. Refuses when there is none.
Tile chooseTile(char const* op, int sm, int64_t tokens, int tactic, Suits const& suits);

// The value of a constant, or `missing`.
int constantOf(KernelImage const& image, char const* name, int missing);

// The image of `kernel` for `device` that has every one of `wanted`; refuses, listing them, when there is none or the
// device has too little shared memory for it. Debug images are taken by a debug build of this library only.
KernelImage const& chooseImage(char const* kernel, Device const& device, Constants const& wanted);

// Every image of `kernel` for `sm`.
std::vector<KernelImage const*> const& imagesOf(char const* kernel, int sm);

// The JSON text of mm2c_plugins_kernels.
std::string describeKernels(int sm);

} // namespace mm2c
