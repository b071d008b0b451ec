// VQ_HOST_DEVICE: a function that kernels call too.
#pragma once

#if defined(__CUDACC__)
#define VQ_HOST_DEVICE __host__ __device__
#else
#define VQ_HOST_DEVICE
#endif
