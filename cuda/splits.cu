// The end of a sum that several blocks have shared: their results added, always in the same order, and the epilogue.
#include "epilogue.cuh"
#include "gather.cuh"

struct Splits {
    const ACCUMULATOR* partial;  // (splits, G, positions, O)
    long long splits, images_fastest;
    View<RESULT> y;
    Geometry geometry;
    Epilogue epilogue;
};

extern "C" __global__ void __launch_bounds__(256) add_splits(const Splits p) {
    const Geometry& q = p.geometry;
    const long long positions = q.batch * q.count[0] * q.count[1] * q.count[2];
    const long long total = q.groups * positions * q.out_channels, step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const long long o = i % q.out_channels, g = i / q.out_channels / positions;
        const Position t = position_of(q, i / q.out_channels % positions, 0, p.images_fastest);
        ACCUMULATOR sum = p.partial[i];
        for (long long split = 1; split < p.splits; ++split) sum = add(sum, p.partial[split * total + i]);
        finish(p.epilogue, sum, g * q.out_channels + o, p.epilogue.residual.offset(t.n, g, o, t.d, t.h, t.w),
               p.y.data[p.y.offset(t.n, g, o, t.d, t.h, t.w)]);
    }
}
