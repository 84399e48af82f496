// Linked where no kernels were compiled: plugins can be created and asked for their shapes; launches are refused.
#include "mm2c/kernel_table.h"

namespace mm2c
{

KernelImage const kKernelImages[] = {{nullptr, nullptr, 0, nullptr, nullptr, nullptr, 0, 0, nullptr, nullptr, 0}};
int const kKernelImageCount = 0;
TileRow const kTileRows[] = {{nullptr, 0, 0, 0, nullptr, 0}};
int const kTileRowCount = 0;

} // namespace mm2c
