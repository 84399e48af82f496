// A plugin's identity, its copies and its serialised form.
#include "state.h"

#include <cstring>
#include <utility>

using namespace nvinfer1;

namespace mm2h
{

std::unique_ptr<Mm2hPlugin> wrap(Mm2hLibrary* library, IPluginV3* plugin, std::string const& name)
{
    auto wrapped = std::make_unique<Mm2hPlugin>();
    wrapped->library = library;
    wrapped->plugin.reset(plugin);
    wrapped->name = name;
    IPluginCapability* const build = plugin->getCapabilityInterface(PluginCapabilityType::kBUILD);
    IPluginCapability* const runtime = plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME);
    if (build != nullptr)
    {
        wrapped->build = static_cast<IPluginV3OneBuild*>(build);
        if (build->getInterfaceInfo().major >= 2)
        {
            wrapped->aliasing = static_cast<IPluginV3OneBuildV2*>(wrapped->build);
        }
    }
    if (runtime == nullptr)
    {
        fail("has no runtime capability", library);
        return nullptr;
    }
    wrapped->runtime = static_cast<IPluginV3OneRuntime*>(runtime);
    return wrapped;
}

} // namespace mm2h

Mm2hPlugin* mm2c_host_clone(Mm2hPlugin* plugin)
{
    IPluginV3* const copy = plugin->plugin->clone();
    if (copy == nullptr)
    {
        mm2h::fail("clone failed", plugin->library);
        return nullptr;
    }
    return mm2h::wrap(plugin->library, copy, plugin->name).release();
}

void mm2c_host_destroy(Mm2hPlugin* plugin)
{
    delete plugin;
}

int mm2c_host_identity(Mm2hPlugin* plugin, char const** name, char const** version, char const** name_space)
{
    IPluginCapability* const found = plugin->plugin->getCapabilityInterface(PluginCapabilityType::kCORE);
    if (found == nullptr)
    {
        mm2h::fail("has no core capability", plugin->library);
        return 1;
    }
    auto const* const core = static_cast<IPluginV3OneCore*>(found);
    *name = core->getPluginName();
    *version = core->getPluginVersion();
    *name_space = core->getPluginNamespace();
    return 0;
}

int mm2c_host_serialize(Mm2hPlugin* plugin)
{
    plugin->serialized = plugin->runtime->getFieldsToSerialize();
    if (plugin->serialized == nullptr)
    {
        mm2h::fail("gives no fields to serialise", plugin->library);
        return -1;
    }
    return plugin->serialized->nbFields;
}

int mm2c_host_serialized(Mm2hPlugin* plugin, int field, Mm2hField* out)
{
    PluginFieldCollection const* const fields = plugin->serialized;
    if (fields == nullptr || field < 0 || field >= fields->nbFields)
    {
        mm2h::fail("there is no serialised field " + std::to_string(field));
        return 1;
    }
    PluginField const& found = fields->fields[field];
    *out = {found.name, found.data, static_cast<int32_t>(found.type), found.length};
    return 0;
}
