// Copies from global to shared memory that run beside the arithmetic, and where in shared memory they put things.
//
// Each wrapper holds one PTX instruction (PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy"). Its
// twin in tests/emulation/warp_operations.h does the same on the CPU.
#pragma once
#include "shared.cuh"

// A row of a tile in shared memory is 64 bytes of the sum's direction, in four chunks of 16.
constexpr int CHUNK_BYTES = 16;
constexpr int ROW_CHUNKS = 4;
constexpr int ROW_BYTES = CHUNK_BYTES * ROW_CHUNKS;

// Where chunk `chunk` of row `row` lies, in bytes. Two rows fill the 32 banks once, so rows 0, 2, 4 and 6 of eight would
// meet in one chunk's banks; exchanging chunks by the row's pair puts the same chunk of any 8 neighbouring rows into 8
// different sets of 4 banks, and so does it for the 4 chunks of 2 rows: both ways of access are free of conflicts.
__device__ inline int swizzled(int row, int chunk) { return row * ROW_BYTES + (chunk ^ (row >> 1 & 3)) * CHUNK_BYTES; }

#ifdef __CUDACC__
// Begin to copy BYTES (4, 8 or 16) to shared memory, or zeros if not `inside`; `from` is then not read.
template <int BYTES>
__device__ inline void copy_async(void* to, const void* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    const int bytes = inside ? BYTES : 0;
    if constexpr (BYTES == 16)  // past L1: nobody reads it from there again
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES),
                     "r"(bytes)
                     : "memory");
#else
    // Turing has no such copies: this one is complete at once.
    struct alignas(BYTES) Unit {
        unsigned int word[BYTES / 4];
    };
    *static_cast<Unit*>(to) = inside ? *static_cast<const Unit*>(from) : Unit{};
#endif
}

// Make a group of the copies begun since the last one.
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait for this thread's own copies, all groups but the LATER last ones.
template <int LATER>
__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
#endif
}
#endif
