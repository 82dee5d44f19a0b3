// The end of a sum that several blocks have shared: their results added, always in the same order, and the epilogue.
#include "digits.cuh"
#include "implicit_gemm.cuh"

// A thread adds N neighbouring sums at a time: the parts have those of channels, or those of positions, side by side,
// as the results lie.
template <int N>
__device__ inline void add_parts(const ImplicitGemm& p) {
    const Geometry& q = p.geometry;
    const long long positions = q.batch * q.count[0] * q.count[1] * q.count[2];
    const long long total = q.groups * positions * q.out_channels, step = (long long)gridDim.x * blockDim.x * N;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < total; i += step) {
        long long rest = i;
        long long o = p.channels_fastest ? take(rest, q.out_channels) : 0;
        long long n = p.images_fastest ? take(rest, q.batch) : 0;
        const long long w = take(rest, q.count[2]), h = take(rest, q.count[1]), d = take(rest, q.count[0]);
        if (!p.images_fastest) n = take(rest, q.batch);
        if (!p.channels_fastest) o = take(rest, q.out_channels);
        const long long g = rest;
        auto sums = *reinterpret_cast<const Vector<ACCUMULATOR, N>*>(p.partial + i);
        for (long long split = 1; split < p.splits; ++split) {
            const auto part = *reinterpret_cast<const Vector<ACCUMULATOR, N>*>(p.partial + split * total + i);
#pragma unroll
            for (int lane = 0; lane < N; ++lane) sums.lane[lane] = add(sums.lane[lane], part.lane[lane]);
        }
        finish(p.epilogue, sums, g * q.out_channels + o, p.channels_fastest, p.epilogue.residual.offset(n, g, o, d, h, w),
               p.y.data + p.y.offset(n, g, o, d, h, w));
    }
}

// Registers for many loads under way.
extern "C" __global__ void __launch_bounds__(256, 2) add_splits(const ImplicitGemm p) {
    p.vectors ? add_parts<PARTIAL_VECTOR>(p) : add_parts<1>(p);
}
