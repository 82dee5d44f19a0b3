// The two ends of a convolution by matrix product, of a tile: patches into columns before it, the epilogue after it.
#include "epilogue.cuh"
#include "patches.cuh"

struct Unpack {
    const ACCUMULATOR* product;  // (n, G, O, positions)
    View<RESULT> y;
    Tile tile;
    Epilogue epilogue;
};

extern "C" __global__ void __launch_bounds__(256) pack_patches(const Pack<ACCUMULATOR> p) {
    pack(p, [](const STORAGE& v) { return load(v); });
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
