// Opening a plugin library and listing its creators.
#include "state.h"

#include <dlfcn.h>

#include <cstring>
#include <new>
#include <string>

using namespace nvinfer1;

namespace
{

thread_local std::string gError;

using GetCreators = IPluginCreatorInterface* const* (*) (int32_t&);

IPluginCreatorV3One* creatorAt(Mm2hLibrary const* library, int index)
{
    if (index < 0 || index >= static_cast<int>(library->creators.size()))
    {
        mm2h::fail("there is no creator " + std::to_string(index));
        return nullptr;
    }
    return library->creators[static_cast<size_t>(index)];
}

} // namespace

namespace mm2h
{

void fail(std::string const& what, Mm2hLibrary const* library)
{
    gError = what;
    char const* text = library != nullptr && library->lastError != nullptr ? library->lastError() : nullptr;
    if (text != nullptr && *text != '\0')
    {
        gError += gError.empty() ? "" : ": ";
        gError += text;
    }
}

} // namespace mm2h

int mm2c_host_abi()
{
    return MM2C_HOST_ABI;
}

char const* mm2c_host_error()
{
    return gError.c_str();
}

Mm2hLibrary* mm2c_host_open(char const* path)
{
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr)
    {
        mm2h::fail(dlerror());
        return nullptr;
    }
    auto const getCreators = reinterpret_cast<GetCreators>(dlsym(handle, "getCreators"));
    if (getCreators == nullptr)
    {
        mm2h::fail("exports no getCreators, so it is no TensorRT plugin library");
        dlclose(handle);
        return nullptr;
    }
    auto library = std::make_unique<Mm2hLibrary>();
    library->handle = handle;
    library->path = path;
    library->lastError = reinterpret_cast<char const* (*) ()>(dlsym(handle, "mm2c_plugins_last_error"));
    int32_t count = 0;
    IPluginCreatorInterface* const* const creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i)
    {
        // Other kinds of creators (IPluginV2's, quick plugins) are not for this host.
        if (std::strcmp(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0)
        {
            library->creators.push_back(static_cast<IPluginCreatorV3One*>(creators[i]));
        }
    }
    return library.release();
}

void* mm2c_host_symbol(Mm2hLibrary* library, char const* symbol)
{
    return dlsym(library->handle, symbol);
}

int mm2c_host_creator_count(Mm2hLibrary* library)
{
    return static_cast<int>(library->creators.size());
}

int mm2c_host_creator(Mm2hLibrary* library, int index, char const** name, char const** version,
    char const** name_space, int32_t* n_fields)
{
    IPluginCreatorV3One* const creator = creatorAt(library, index);
    if (creator == nullptr)
    {
        return 1;
    }
    *name = creator->getPluginName();
    *version = creator->getPluginVersion();
    *name_space = creator->getPluginNamespace();
    PluginFieldCollection const* const fields = creator->getFieldNames();
    *n_fields = fields != nullptr ? fields->nbFields : 0;
    return 0;
}

int mm2c_host_creator_field(Mm2hLibrary* library, int index, int field, Mm2hField* out)
{
    IPluginCreatorV3One* const creator = creatorAt(library, index);
    if (creator == nullptr)
    {
        return 1;
    }
    PluginFieldCollection const* const fields = creator->getFieldNames();
    if (fields == nullptr || field < 0 || field >= fields->nbFields)
    {
        mm2h::fail("there is no field " + std::to_string(field));
        return 1;
    }
    PluginField const& found = fields->fields[field];
    *out = {found.name, nullptr, static_cast<int32_t>(found.type), found.length};
    return 0;
}

Mm2hPlugin* mm2c_host_create(Mm2hLibrary* library, int creator, char const* name, Mm2hField const* fields,
    int32_t n_fields, int phase)
{
    IPluginCreatorV3One* const maker = creatorAt(library, creator);
    if (maker == nullptr)
    {
        return nullptr;
    }
    std::vector<PluginField> given;
    for (int32_t i = 0; i < n_fields; ++i)
    {
        given.emplace_back(
            fields[i].name, fields[i].data, static_cast<PluginFieldType>(fields[i].type), fields[i].length);
    }
    PluginFieldCollection const collection{n_fields, given.data()};
    IPluginV3* const made = maker->createPlugin(name, &collection, static_cast<TensorRTPhase>(phase));
    if (made == nullptr)
    {
        mm2h::fail("", library);
        return nullptr;
    }
    return mm2h::wrap(library, made, maker->getPluginName()).release();
}
