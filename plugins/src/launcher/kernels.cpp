#include "launcher/kernels.h"

#include "refusal.h"

#include <cstring>
#include <map>
#include <sstream>
#include <string_view>
#include <utility>

namespace mm2c
{
namespace
{
#ifdef MM2C_DEBUG
constexpr bool kDebug = true;
#else
constexpr bool kDebug = false;
#endif

bool equal(char const* a, char const* b)
{
    return std::strcmp(a, b) == 0;
}

Constant const* find(Constant const* constants, int count, char const* name)
{
    for (int i = 0; i < count; ++i)
    {
        if (equal(constants[i].name, name))
        {
            return &constants[i];
        }
    }
    return nullptr;
}

bool has(KernelImage const& image, Constants const& wanted)
{
    for (Constant const& each : wanted)
    {
        Constant const* const found = find(image.constants, image.n_constants, each.name);
        if (found == nullptr || found->value != each.value)
        {
            return false;
        }
    }
    return true;
}

// Table entries by kernel or op and architecture, for they are many and asked for at every change of shape.
template <typename Entry>
using Grouped = std::map<std::pair<std::string_view, int>, std::vector<Entry>>;

template <typename Entry>
std::vector<Entry> const& group(Grouped<Entry> const& all, char const* name, int sm)
{
    static std::vector<Entry> const none;
    auto const found = all.find({name, sm});
    return found == all.end() ? none : found->second;
}

std::string listed(Constants const& constants)
{
    std::ostringstream text;
    for (size_t i = 0; i < constants.size(); ++i)
    {
        text << (i == 0 ? "" : ", ") << constants[i].name << "=" << constants[i].value;
    }
    return text.str();
}
} // namespace

int Tile::operator[](char const* constant) const
{
    if (Constant const* const found = find(row->constants, row->n_constants, constant))
    {
        return found->value;
    }
    refuse("tile table of ", row->op, " for sm_", row->sm, ": row ", tactic, " has no ", constant);
}

Constants Tile::with(Constants const& more) const
{
    Constants all = more;
    for (int i = 0; i < row->n_constants; ++i)
    {
        Constant const& own = row->constants[i];
        if (find(more.data(), static_cast<int>(more.size()), own.name) == nullptr)
        {
            all.push_back(own);
        }
    }
    return all;
}

std::vector<Tile> const& tiles(char const* op, int sm)
{
    static Grouped<Tile> const all = [] {
        Grouped<Tile> found;
        for (int i = 0; i < kTileRowCount; ++i)
        {
            auto& rows = found[{kTileRows[i].op, kTileRows[i].sm}];
            rows.push_back({&kTileRows[i], static_cast<int>(rows.size()) + 1});
        }
        return found;
    }();
    return group(all, op, sm);
}

Tile chooseTile(char const* op, int sm, int64_t tokens, int tactic, Suits const& suits)
{
    std::vector<Tile> const& all = tiles(op, sm);
    Tile const* chosen = nullptr;
    for (Tile const& tile : all)
    {
        if (tokens > tile.row->max_tokens || !suits(tile))
        {
            continue;
        }
        if (tile.tactic == tactic)
        {
            return tile;
        }
        if (chosen == nullptr || (chosen->row->alternative && !tile.row->alternative))
        {
            chosen = &tile;
        }
    }
    if (chosen == nullptr)
    {
        refuse("no tile of ", op, " for ", tokens, " tokens of these widths on sm_", sm,
            all.empty() ? "; this library holds no kernels for it" : "");
    }
    return *chosen;
}

int constantOf(KernelImage const& image, char const* name, int missing)
{
    Constant const* const found = find(image.constants, image.n_constants, name);
    return found == nullptr ? missing : found->value;
}

KernelImage const& chooseImage(char const* kernel, Device const& device, Constants const& wanted)
{
    int const sm = device.imageSm;
    KernelImage const* chosen = nullptr;
    for (KernelImage const* image : imagesOf(kernel, sm))
    {
        bool const debug = constantOf(*image, "DEBUG", 0) != 0;
        if (has(*image, wanted) && (kDebug || !debug) && (chosen == nullptr || debug))
        {
            chosen = image;
        }
    }
    if (chosen == nullptr)
    {
        refuse("no kernel ", kernel, " for sm_", sm, wanted.empty() ? "" : " with ", listed(wanted));
    }
    if (chosen->shared > device.maxShared)
    {
        refuse(chosen->variant, " needs ", chosen->shared, " bytes of shared memory, the device has ",
            device.maxShared);
    }
    return *chosen;
}

std::vector<KernelImage const*> const& imagesOf(char const* kernel, int sm)
{
    static Grouped<KernelImage const*> const all = [] {
        Grouped<KernelImage const*> found;
        for (int i = 0; i < kKernelImageCount; ++i)
        {
            found[{kKernelImages[i].kernel, kKernelImages[i].sm}].push_back(&kKernelImages[i]);
        }
        return found;
    }();
    return group(all, kernel, sm);
}

std::string describeKernels(int sm)
{
    std::ostringstream json;
    json << "[";
    char const* separator = "";
    for (int i = 0; i < kKernelImageCount; ++i)
    {
        KernelImage const& image = kKernelImages[i];
        if (sm != 0 && image.sm != sm)
        {
            continue;
        }
        json << separator << "{\"kernel\": \"" << image.kernel << "\", \"variant\": \"" << image.variant
             << "\", \"sm\": " << image.sm << ", \"block\": " << image.warps * 32 << ", \"shared\": " << image.shared
             << ", \"bytes\": " << image.cubin_end - image.cubin << ", \"types\": \"" << image.types
             << "\", \"constants\": {";
        for (int c = 0; c < image.n_constants; ++c)
        {
            json << (c == 0 ? "" : ", ") << "\"" << image.constants[c].name << "\": " << image.constants[c].value;
        }
        json << "}}";
        separator = ",\n ";
    }
    json << "]";
    return json.str();
}

} // namespace mm2c
