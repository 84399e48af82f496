/* C interface of libmm2c_host.so: drives any library of TensorRT plugins (IPluginV3) through TensorRT's abstract
 * interfaces alone. It links neither TensorRT nor CUDA, so on a machine without a GPU everything but the kernels runs.
 *
 * Functions that return int give 0 for success. Those that return a pointer give null for failure. Either way
 * mm2c_host_error() then says what failed, with the plugin library's own words where it has any.
 */
#ifndef MM2C_HOST_H
#define MM2C_HOST_H

#include <stddef.h>
#include <stdint.h>

#define MM2H_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever anything below changes incompatibly. */
#define MM2C_HOST_ABI 1

/* TensorRT's Dims::MAX_DIMS. */
#define MM2H_MAX_DIMS 8

typedef struct Mm2hLibrary Mm2hLibrary;
typedef struct Mm2hPlugin Mm2hPlugin;
typedef struct Mm2hOp Mm2hOp;
typedef struct Mm2hCall Mm2hCall;

/* A tensor of an optimisation profile. dtype and format are TensorRT's DataType and TensorFormat. An extent that the
 * builder does not know is -1 in dims; min, opt and max hold the profile's bounds (all equal for a known extent). */
typedef struct Mm2hTensor
{
    int32_t dtype;
    int32_t format;
    int32_t rank;
    int64_t dims[MM2H_MAX_DIMS];
    int64_t min[MM2H_MAX_DIMS];
    int64_t opt[MM2H_MAX_DIMS];
    int64_t max[MM2H_MAX_DIMS];
} Mm2hTensor;

/* A plugin field; type is TensorRT's PluginFieldType, length counts its elements. */
typedef struct Mm2hField
{
    char const* name;
    void const* data;
    int32_t type;
    int32_t length;
} Mm2hField;

MM2H_API int mm2c_host_abi(void);

/* What the last failed call of this thread had to say; valid until the thread's next call. */
MM2H_API char const* mm2c_host_error(void);

/* ---- libraries ---- */

/* Opens a library that exports getCreators. It stays loaded until the process ends. */
MM2H_API Mm2hLibrary* mm2c_host_open(char const* path);
/* The address of an exported symbol of the library, or null. */
MM2H_API void* mm2c_host_symbol(Mm2hLibrary* library, char const* symbol);
MM2H_API int mm2c_host_creator_count(Mm2hLibrary* library);
/* Name, version and namespace of a creator, and the fields it takes; data is null in all of them. */
MM2H_API int mm2c_host_creator(Mm2hLibrary* library, int index, char const** name, char const** version,
    char const** name_space, int32_t* n_fields);
MM2H_API int mm2c_host_creator_field(Mm2hLibrary* library, int index, int field, Mm2hField* out);

/* ---- plugins: create, serialise ---- */

/* phase: 0 build, 1 runtime. `name` is the layer's. */
MM2H_API Mm2hPlugin* mm2c_host_create(Mm2hLibrary* library, int creator, char const* name, Mm2hField const* fields,
    int32_t n_fields, int phase);
MM2H_API Mm2hPlugin* mm2c_host_clone(Mm2hPlugin* plugin);
MM2H_API void mm2c_host_destroy(Mm2hPlugin* plugin);
/* What the plugin says of itself. */
MM2H_API int mm2c_host_identity(
    Mm2hPlugin* plugin, char const** name, char const** version, char const** name_space);
/* Number of fields to serialise, or -1; each is then read by mm2c_host_serialized, before the next count. */
MM2H_API int mm2c_host_serialize(Mm2hPlugin* plugin);
MM2H_API int mm2c_host_serialized(Mm2hPlugin* plugin, int field, Mm2hField* out);

/* ---- what the builder asks ---- */

MM2H_API int mm2c_host_output_count(Mm2hPlugin* plugin);
MM2H_API int mm2c_host_output_dtypes(
    Mm2hPlugin* plugin, int32_t const* in, int32_t n_in, int32_t* out, int32_t n_out);
/* Fills rank, dims, min, opt and max of each output. */
MM2H_API int mm2c_host_output_shapes(
    Mm2hPlugin* plugin, Mm2hTensor const* in, int32_t n_in, Mm2hTensor* out, int32_t n_out);
/* The first position (inputs, then outputs) that the plugin refuses, or -1 when it takes them all; -2 for an error. */
MM2H_API int mm2c_host_refused_position(
    Mm2hPlugin* plugin, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out);
/* 1 when the plugin takes `position`, 0 when not; -2 for an error. */
MM2H_API int mm2c_host_takes_position(
    Mm2hPlugin* plugin, int32_t position, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out);
/* The input whose memory an output shares, or -1. */
MM2H_API int mm2c_host_aliased_input(Mm2hPlugin* plugin, int32_t output);
/* Number of tactics, or -1; writes at most `size` of them. */
MM2H_API int mm2c_host_tactics(Mm2hPlugin* plugin, int32_t* tactics, int32_t size);
MM2H_API int mm2c_host_configure(Mm2hPlugin* plugin, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out);
/* Bytes of workspace, or -1. */
MM2H_API int64_t mm2c_host_workspace(Mm2hPlugin* plugin, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out);

/* ---- what the engine does ---- */

MM2H_API Mm2hOp* mm2c_host_attach(Mm2hPlugin* plugin);
MM2H_API void mm2c_host_detach(Mm2hOp* op);
MM2H_API int mm2c_host_set_tactic(Mm2hOp* op, int32_t tactic);
MM2H_API int mm2c_host_shape_change(Mm2hOp* op, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out);

/* A launch of fixed shapes and types. `pointers` (inputs, then outputs) is read at every launch and must outlive the
 * call. One thread at a time uses an op and its calls. */
MM2H_API Mm2hCall* mm2c_host_prepare(
    Mm2hOp* op, Mm2hTensor const* tensors, int32_t n_in, int32_t n_out, void* const* pointers);
MM2H_API void mm2c_host_discard(Mm2hCall* call);
/* Enqueues. Tells the plugin the shapes first if another call of the op was the last to do so. */
MM2H_API int mm2c_host_launch(Mm2hCall* call, void* workspace, void* stream);

#ifdef __cplusplus
}
#endif

#endif
