// The two ends of a convolution by matrix product: patches into columns before it, the epilogue after it.
//
// Both work on a tile: `positions` target positions of every image from `first` on, numbered in C order.
#include "epilogue.cuh"

struct Tile {
    Geometry geometry;
    long long first, positions;
};

struct Pack {
    View<const STORAGE> x;
    ACCUMULATOR* columns;  // (n, G, C * KD * KH * KW, positions)
    Tile tile;
};

struct Unpack {
    const ACCUMULATOR* product;  // (n, G, O, positions)
    View<RESULT> y;
    Tile tile;
    Epilogue epilogue;
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
extern "C" __global__ void __launch_bounds__(256) pack_patches(const Pack p) {
    const Geometry& q = p.tile.geometry;
    const long long taps = q.kernel[0] * q.kernel[1] * q.kernel[2];
    const long long total = q.batch * q.groups * q.in_channels * p.tile.positions;
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const long long local = i % p.tile.positions, row = i / p.tile.positions;
        const long long c = row % q.in_channels, g = row / q.in_channels % q.groups;
        const long long n = row / q.in_channels / q.groups;
        const Position t = position_of(p.tile, local);
        ACCUMULATOR* to = p.columns + row * taps * p.tile.positions + local;
        for (long long kd = 0; kd < q.kernel[0]; ++kd) {
            const long long d = source(q, 0, t.d, kd);
            for (long long kh = 0; kh < q.kernel[1]; ++kh) {
                const long long h = source(q, 1, t.h, kh);
                for (long long kw = 0; kw < q.kernel[2]; ++kw) {
                    const long long w = source(q, 2, t.w, kw);
                    const bool inside = d >= 0 && h >= 0 && w >= 0;
                    *to = inside ? load(p.x.data[p.x.offset(n, g, c, d, h, w)]) : ACCUMULATOR{};
                    to += p.tile.positions;
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) finish_product(const Unpack p) {
    const Geometry& q = p.tile.geometry;
    const long long total = q.batch * q.groups * q.out_channels * p.tile.positions;
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const long long row = i / p.tile.positions;
        const long long o = row % q.out_channels, g = row / q.out_channels % q.groups;
        const long long n = row / q.out_channels / q.groups;
        const Position t = position_of(p.tile, i % p.tile.positions);
        finish(p.epilogue, p.product[i], g * q.out_channels + o, p.epilogue.residual.offset(n, g, o, t.d, t.h, t.w),
               p.y.data[p.y.offset(n, g, o, t.d, t.h, t.w)]);
    }
}
