// What implicit GEMM is told of a piece; the kernel that adds the parts of its sums is told the same.
#pragma once
#include "epilogue.cuh"
#include "gather.cuh"

// Host record: IMPLICIT_GEMM in fastconv/gpu/implicit_gemm.py.
struct ImplicitGemm {
    View<const STORAGE> x;
    const STORAGE* weight;  // (G, O, K rounded up to whole steps), filled up with zeros
    const Tap* taps;  // of channel 0, or BY_PRODUCT all products
    Divisor channels;
    Divisor group_channels;   // of one group: channels where sums are grouped, images where results are
    long long group_outputs;  // of one group
    View<RESULT> y;
    Geometry geometry;
    Epilogue epilogue;
    long long channels_fastest;  // neighbouring threads write neighbouring channels, not positions
    long long images_fastest;    // neighbouring positions are those of neighbouring images
    long long vectors;           // what is written, and the residual, lies together and aligned in vectors of that direction
    long long splits;
    // (splits, G, positions, O), or with positions fastest (splits, G, O, positions); null where one block has the whole sum.
    ACCUMULATOR* partial;
};

// Elements of a vector of shared sums: 16 bytes of the parts.
constexpr int PARTIAL_VECTOR = 16 / sizeof(ACCUMULATOR);
