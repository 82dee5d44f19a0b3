// Patches copied into the columns of a matrix (im2col).
#pragma once
#include "geometry.cuh"
#include "types.cuh"

// `positions` target positions of every image from `first` on, numbered in C order.
struct Tile {
    Geometry geometry;
    long long first, positions;
};

template <class T>
struct Pack {
    View<const STORAGE> x;
    T* columns;  // (n, G, C * KD * KH * KW, positions)
    Tile tile;
};

struct Position {
    long long d, h, w;
};

__device__ inline Position position_of(const Tile& tile, long long local) {
    const long long* count = tile.geometry.count;
    const long long t = tile.first + local;
    return {t / count[2] / count[1], t / count[2] % count[1], t % count[2]};
}

// A thread copies all taps of one channel at one position, so each axis of each tap is resolved once.
template <class T, class Convert>
__device__ inline void pack(const Pack<T>& p, const Convert& convert) {
    const Geometry& q = p.tile.geometry;
    const long long taps = q.kernel[0] * q.kernel[1] * q.kernel[2];
    const long long total = q.batch * q.groups * q.in_channels * p.tile.positions;
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const long long local = i % p.tile.positions, row = i / p.tile.positions;
        const long long c = row % q.in_channels, g = row / q.in_channels % q.groups;
        const long long n = row / q.in_channels / q.groups;
        const Position t = position_of(p.tile, local);
        T* to = p.columns + row * taps * p.tile.positions + local;
        for (long long kd = 0; kd < q.kernel[0]; ++kd) {
            const long long d = source(q, 0, t.d, kd);
            for (long long kh = 0; kh < q.kernel[1]; ++kh) {
                const long long h = source(q, 1, t.h, kh);
                for (long long kw = 0; kw < q.kernel[2]; ++kw) {
                    const long long w = source(q, 2, t.w, kw);
                    const bool inside = d >= 0 && h >= 0 && w >= 0;
                    *to = inside ? convert(p.x.data[p.x.offset(n, g, c, d, h, w)]) : T{};
                    to += p.tile.positions;
                }
            }
        }
    }
}
