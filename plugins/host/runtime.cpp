// What a TensorRT engine does with a plugin: attach, tell it shapes, enqueue.
#include "state.h"

using namespace nvinfer1;

namespace
{

// No allocator and no error recorder: a plugin that needs one of them is refused by itself.
class Resources : public IPluginResourceContext
{
public:
    IGpuAllocator* getGpuAllocator() const noexcept override
    {
        return nullptr;
    }
    IErrorRecorder* getErrorRecorder() const noexcept override
    {
        return nullptr;
    }
};

std::vector<PluginTensorDesc> described(Mm2hTensor const* tensors, int32_t count)
{
    std::vector<PluginTensorDesc> result;
    for (int32_t i = 0; i < count; ++i)
    {
        result.push_back(mm2h::described(tensors[i]));
    }
    return result;
}

int tellShapes(
    Attached& op, std::vector<PluginTensorDesc> const& inputs, std::vector<PluginTensorDesc> const& outputs)
{
    op.shapesOf = nullptr;
    int const status = op.plugin.runtime->onShapeChange(inputs.data(), static_cast<int32_t>(inputs.size()),
        outputs.data(), static_cast<int32_t>(outputs.size()));
    if (status != 0)
    {
        mm2h::fail("", op.plugin.library);
    }
    return status;
}

} // namespace

Mm2hOp* mm2c_host_attach(Mm2hPlugin* plugin)
{
    static Resources resources;
    IPluginV3* const made = plugin->runtime->attachToContext(&resources);
    if (made == nullptr)
    {
        mm2h::fail("", plugin->library);
        return nullptr;
    }
    auto wrapped = mm2h::wrap(plugin->library, made, plugin->name);
    if (wrapped == nullptr)
    {
        return nullptr;
    }
    return new Mm2hOp{std::make_shared<Attached>(Attached{std::move(*wrapped), nullptr})};
}

void mm2c_host_detach(Mm2hOp* op)
{
    delete op;
}

int mm2c_host_set_tactic(Mm2hOp* op, int32_t tactic)
{
    op->attached->shapesOf = nullptr;
    int const status = op->attached->plugin.runtime->setTactic(tactic);
    if (status != 0)
    {
        mm2h::fail("", op->attached->plugin.library);
    }
    return status;
}

int mm2c_host_shape_change(Mm2hOp* op, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out)
{
    if (!mm2h::sound(tensors, n_in + n_out))
    {
        return 1;
    }
    return tellShapes(*op->attached, described(tensors, n_in), described(tensors + n_in, n_out));
}

Mm2hCall* mm2c_host_prepare(
    Mm2hOp* op, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out, void* const* pointers)
{
    if (!mm2h::sound(tensors, n_in + n_out))
    {
        return nullptr;
    }
    auto* const call = new Mm2hCall;
    call->attached = op->attached;
    call->inputs = described(tensors, n_in);
    call->outputs = described(tensors + n_in, n_out);
    call->pointers = pointers;
    return call;
}

void mm2c_host_discard(Mm2hCall* call)
{
    if (call != nullptr && call->attached->shapesOf == call)
    {
        call->attached->shapesOf = nullptr; // another call may get this one's address
    }
    delete call;
}

int mm2c_host_launch(Mm2hCall* call, void* workspace, void* stream)
{
    Attached& op = *call->attached;
    if (op.shapesOf != call)
    {
        int const status = tellShapes(op, call->inputs, call->outputs);
        if (status != 0)
        {
            return status;
        }
        op.shapesOf = call;
    }
    void* const* const outputs = call->pointers + call->inputs.size();
    int const status = op.plugin.runtime->enqueue(call->inputs.data(), call->outputs.data(), call->pointers,
        outputs, workspace, static_cast<cudaStream_t>(stream));
    if (status != 0)
    {
        mm2h::fail("", op.plugin.library);
    }
    return status;
}
