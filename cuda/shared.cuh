// The shared memory that the host asks for at launch.
#pragma once

#ifdef __CUDACC__
// Swizzles are patterns of 1024 bytes (cuda/tma.cuh): they begin where this does.
extern __shared__ __align__(1024) unsigned char dynamic_shared[];

__device__ inline unsigned int shared_address(const void* p) { return (unsigned int)__cvta_generic_to_shared(p); }
#endif
