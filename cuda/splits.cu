// The end of a sum that several blocks have shared: their results added, always in the same order, and the epilogue.
#include "digits.cuh"
#include "implicit_gemm.cuh"

extern "C" __global__ void __launch_bounds__(256) add_splits(const ImplicitGemm p) {
    const Geometry& q = p.geometry;
    const long long positions = q.batch * q.count[0] * q.count[1] * q.count[2];
    const long long total = q.groups * positions * q.out_channels, step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        long long rest = i;
        const long long o = take(rest, q.out_channels);
        long long n = p.images_fastest ? take(rest, q.batch) : 0;
        const long long w = take(rest, q.count[2]), h = take(rest, q.count[1]), d = take(rest, q.count[0]);
        if (!p.images_fastest) n = take(rest, q.batch);
        const long long g = rest;
        ACCUMULATOR sum = p.partial[i];
        for (long long split = 1; split < p.splits; ++split) sum = add(sum, p.partial[split * total + i]);
        finish(p.epilogue, sum, g * q.out_channels + o, p.epilogue.residual.offset(n, g, o, d, h, w),
               p.y.data[p.y.offset(n, g, o, d, h, w)]);
    }
}
