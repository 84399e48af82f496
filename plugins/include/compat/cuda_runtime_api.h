// The two CUDA types that TensorRT's headers name, so that the library builds without the CUDA toolkit.
#pragma once

struct CUstream_st;
struct CUevent_st;
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
