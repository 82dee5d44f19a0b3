// Copies by Hopper's copy engine (TMA), which computes addresses itself: one thread names a place in an array, and the
// engine brings a whole tile of it to shared memory and counts its bytes on a barrier.
//
// A tensor map tells it about the array: where it lies, its sizes and strides, and the tile (fastconv/gpu/tensor_maps.py
// makes them). Both kinds of tile here have rows of 128 bytes. Chunk c of a row of 16-byte chunks lies at chunk
// c ^ (row % 8), so that eight neighbouring rows have it in eight different sets of four banks: the swizzle of 128 bytes,
// which repeats every 1024. What lies outside of the array arrives as zeros, and its bytes count.
//
// Each wrapper holds one PTX instruction (PTX ISA, "Data Movement and Conversion Instructions: Tensor copy"); its twin in
// tests/emulation/hopper_operations.h does the same on the CPU.
#pragma once
#include "barriers.cuh"

constexpr int SWIZZLED_ROW_BYTES = 128;

struct alignas(64) TensorMap {
    unsigned long long opaque[16];
};

// A position in an array of images, (w, h, d, n), and a tap: how far from there, along w, h and d, is read.
struct Pixel {
    int at[3], n;
    unsigned short tap[3];
};

#ifdef __CUDACC__
// Copy channels from `channel` on of consecutive pixels (im2col mode): as many of both as the map says. They run along w
// from `pixel` to the upper corner of the map's box, on in the box's next row, and so on to the next image; of each the
// element at `tap` from there is read. The array has `axes` axes, of which n and c are two.
__device__ inline void copy_pixels(void* to, const TensorMap& map, Barrier& barrier, int axes, int channel,
                                   const Pixel& pixel) {
    const unsigned int target = shared_address(to), counts = shared_address(&barrier);
    const int(&at)[3] = pixel.at;
    const unsigned short(&tap)[3] = pixel.tap;
    if (axes == 3)
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%2, %3, %4}], [%5], {%6};" ::"r"(target),
            "l"(&map), "r"(channel), "r"(at[0]), "r"(pixel.n), "r"(counts), "h"(tap[0])
            : "memory");
    else if (axes == 4)
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%2, %3, %4, %5}], [%6], {%7, %8};" ::"r"(target),
            "l"(&map), "r"(channel), "r"(at[0]), "r"(at[1]), "r"(pixel.n), "r"(counts), "h"(tap[0]), "h"(tap[1])
            : "memory");
    else
        asm volatile(
            "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%2, %3, %4, %5, %6}], [%7], {%8, %9, %10};" ::"r"(target),
            "l"(&map), "r"(channel), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(pixel.n), "r"(counts), "h"(tap[0]),
            "h"(tap[1]), "h"(tap[2])
            : "memory");
}

// Copy the box of an array of three axes, the fastest first, that begins there.
__device__ inline void copy_box(void* to, const TensorMap& map, Barrier& barrier, int i, int j, int k) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(to)),
        "l"(&map), "r"(i), "r"(j), "r"(k), "r"(shared_address(&barrier))
        : "memory");
}
#endif
