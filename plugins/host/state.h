// What lies behind the host's opaque handles.
#pragma once

#include "host.h"

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct Mm2hLibrary
{
    void* handle = nullptr;
    std::string path;
    std::vector<nvinfer1::IPluginCreatorV3One*> creators;
    char const* (*lastError)() = nullptr; // mm2c_plugins_last_error where the library has it
};

struct Mm2hPlugin
{
    Mm2hLibrary* library = nullptr;
    std::unique_ptr<nvinfer1::IPluginV3> plugin;
    std::string name; // of the plugin, for messages
    nvinfer1::IPluginV3OneBuild* build = nullptr;
    nvinfer1::IPluginV3OneBuildV2* aliasing = nullptr; // the same object, where it is of version 2
    nvinfer1::IPluginV3OneRuntime* runtime = nullptr;
    nvinfer1::PluginFieldCollection const* serialized = nullptr;
};

// A plugin in an execution context. Its calls hold it too, so either may go first.
struct Attached
{
    Mm2hPlugin plugin;
    Mm2hCall const* shapesOf = nullptr; // the call whose shapes the plugin was told last
};

struct Mm2hOp
{
    std::shared_ptr<Attached> attached;
};

struct Mm2hCall
{
    std::shared_ptr<Attached> attached;
    std::vector<nvinfer1::PluginTensorDesc> inputs, outputs;
    void* const* pointers = nullptr;
};

namespace mm2h
{

// Keeps `what` for mm2c_host_error, followed by the library's last error where it has one.
void fail(std::string const& what, Mm2hLibrary const* library = nullptr);

// The capabilities of `plugin`, or null with the error kept.
std::unique_ptr<Mm2hPlugin> wrap(Mm2hLibrary* library, nvinfer1::IPluginV3* plugin, std::string const& name);

nvinfer1::PluginTensorDesc described(Mm2hTensor const& tensor);
std::vector<nvinfer1::DynamicPluginTensorDesc> profiled(Mm2hTensor const* tensors, int32_t count);
// False, with the error kept, where a rank or a count cannot be.
bool sound(Mm2hTensor const* tensors, int32_t count);

} // namespace mm2h
