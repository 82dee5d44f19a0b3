// What the positions and the products of an implicit GEMM read: a table of products, computed by the host for the
// strides at hand, so that the main loop divides nothing.
#pragma once
#include "geometry.cuh"
#include "types.cuh"

// A product of every sum, or a tap of channel 0. Host record: TAP in fastconv/gpu/gathering.py.
struct alignas(16) Tap {
    long long offset;  // in elements, from what tap 0 of channel 0 reads to what this one reads, were nothing padded
    int w;             // along each axis, in input elements
    short h, d;
};

struct Position {
    long long n;
    unsigned int d, h, w;
};

// The target `local` places after number `first` of all images; past the last it is some other one, whose sums nobody
// writes. Targets are numbered image by image, or with the images fastest. Only `first` needs 64-bit division.
__device__ inline Position position_of(const Geometry& q, long long first, unsigned int local, bool images_fastest) {
    const unsigned int h = q.count[1], w = q.count[2], image = q.count[0] * h * w;
    const unsigned int radix = images_fastest ? q.batch : image;
    const unsigned int low = (unsigned int)(first % radix) + local;
    const long long high = first / radix + low / radix;
    long long n = images_fastest ? low % radix : high;
    unsigned int t = images_fastest ? (unsigned int)high : low % radix;
    if (n >= q.batch || t >= image) n = t = 0;
    return {n, t / w / h, t / w % h, t % w};
}

// The input of one position: where tap 0 reads, which is outside of the array where that is padding.
struct Source {
    const STORAGE* data;
    int at[3];
};

__device__ inline Source source_of(const View<const STORAGE>& x, const Geometry& q, const Position& t, long long group) {
    Source s;
    s.at[0] = (int)(t.d * q.stride[0] - q.offset[0]);
    s.at[1] = (int)(t.h * q.stride[1] - q.offset[1]);
    s.at[2] = (int)(t.w * q.stride[2] - q.offset[2]);
    s.data = x.data + x.offset(t.n, group, 0, s.at[0], s.at[1], s.at[2]);
    return s;
}

// Division of numbers below 2^31 by one and the same, with a product for it (Granlund and Montgomery, "Division by
// invariant integers using multiplication", PLDI 1994). Host record: `divisor` in fastconv/gpu/gathering.py.
struct Divisor {
    long long value, magic, shift;
};

__device__ inline int quotient(int n, const Divisor& d) {
    const unsigned int high = (unsigned int)((unsigned long long)(unsigned int)n * (unsigned int)d.magic >> 32);
    return (int)((high + (unsigned int)n) >> (int)d.shift);
}

// How far the element that stands for the padded one at `i` is from there. Not by `resolve`: a kernel has this for every
// element of a chunk, and without branches it is compiled in half of the time.
__device__ inline int moved(const Geometry& q, int axis, int i) {
    const int size = (int)q.size[axis], outside = i < 0 ? i : i < size ? 0 : i - (size - 1);
    if (q.padding_mode == CIRCULAR) return outside < 0 ? size : outside > 0 ? -size : 0;
    return q.padding_mode == REFLECT ? -2 * outside : -outside;
}

// Whether what a tap reads for a position is in the array, at `s.data + tap.offset`, and not in the padding.
__device__ inline bool inside(const Geometry& q, const Source& s, const Tap& tap) {
    return below(s.at[0] + tap.d, q.size[0]) && below(s.at[1] + tap.h, q.size[1]) && below(s.at[2] + tap.w, q.size[2]);
}

// Whether all that a position reads is in the array.
__device__ inline bool window_inside(const Geometry& q, const Source& s) {
    bool all = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
        all &= s.at[axis] >= 0 && s.at[axis] + (q.kernel[axis] - 1) * q.dilation[axis] < q.size[axis];
    return all;
}

// How far from there, in elements, the one lies that stands for it, where padding is not zeros.
__device__ inline long long elsewhere(const View<const STORAGE>& x, const Geometry& q, const Source& s, const Tap& tap) {
    return x.offset(0, 0, 0, moved(q, 0, s.at[0] + tap.d), moved(q, 1, s.at[1] + tap.h), moved(q, 2, s.at[2] + tap.w));
}
