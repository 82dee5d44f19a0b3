// What a correlation is made of: its numbers, and strided views of the caller's memory.
//
// Host records of the same layout: GEOMETRY in fastconv/lowering.py, VIEW in fastconv/gpu/arguments.py. Every field is
// 8 bytes wide, so no compiler puts padding between them.
#pragma once

struct Geometry {
    long long batch, groups, in_channels, out_channels;
    long long size[3], kernel[3], count[3], stride[3], dilation[3], offset[3];
    long long padding_mode;
};

// The order of PADDING_MODES in fastconv/problem.py.
enum PaddingMode { ZEROS, REFLECT, REPLICATE, CIRCULAR };

// Six axes: (n, g, c, d, h, w) of data, (g, o, c, kd, kh, kw) of a weight. Strides count elements and may be negative.
template <class T>
struct View {
    T* data;
    long long stride[6];

    __device__ long long offset(long long a, long long b, long long c, long long d, long long e, long long f) const {
        return a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3] + e * stride[4] + f * stride[5];
    }
};

// The input index that holds what a padded axis has at `i`; -1 where that is a zero.
template <class Index>
__device__ inline Index resolve(Index i, Index size, long long padding_mode) {
    if (i >= 0 && i < size) return i;
    if (padding_mode == REFLECT) return i < 0 ? -i : 2 * (size - 1) - i;
    if (padding_mode == REPLICATE) return i < 0 ? 0 : size - 1;
    if (padding_mode == CIRCULAR) return i < 0 ? i + size : i - size;
    return -1;
}

// 0 <= i < size in one comparison, for sizes below 2^31.
__device__ inline bool below(int i, long long size) { return (unsigned int)i < (unsigned int)size; }

// Where tap `k` of target `t` reads along an axis.
__device__ inline long long source(const Geometry& q, int axis, long long t, long long k) {
    const long long i = t * q.stride[axis] + k * q.dilation[axis] - q.offset[axis];
    return resolve(i, q.size[axis], q.padding_mode);
}
