// Direct correlation by its definition, for any problem and any dtype.
//
// `direct_thread` gives every output a thread. `direct_warp` gives every output a warp, whose lanes share the sum: for
// few outputs with long sums, such as weight gradients, where a thread an output would leave most of the GPU idle.
#include "digits.cuh"
#include "epilogue.cuh"

struct Direct {
    View<const STORAGE> x, w;
    View<RESULT> y;
    Geometry geometry;
    Epilogue epilogue;
    long long channels_fastest;  // neighbouring threads take neighbouring channels, not positions
};

struct Target {
    long long n, g, o, d, h, w;
};

__device__ inline long long outputs(const Geometry& q) {
    return q.batch * q.groups * q.out_channels * q.count[0] * q.count[1] * q.count[2];
}

__device__ inline Target target_of(const Direct& p, long long index) {
    const Geometry& q = p.geometry;
    Target t;
    if (p.channels_fastest) t.o = take(index, q.out_channels);
    t.w = take(index, q.count[2]);
    t.h = take(index, q.count[1]);
    t.d = take(index, q.count[0]);
    if (!p.channels_fastest) t.o = take(index, q.out_channels);
    t.g = take(index, q.groups);
    t.n = index;
    return t;
}

__device__ inline void write(const Direct& p, const Target& t, ACCUMULATOR sum) {
    finish(p.epilogue, sum, t.g * p.geometry.out_channels + t.o, p.epilogue.residual.offset(t.n, t.g, t.o, t.d, t.h, t.w),
           p.y.data[p.y.offset(t.n, t.g, t.o, t.d, t.h, t.w)]);
}

extern "C" __global__ void __launch_bounds__(256, 3) direct_thread(const Direct p) {
    const Geometry& q = p.geometry;
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < outputs(q); i += step) {
        const Target t = target_of(p, i);
        const STORAGE* image = p.x.data + p.x.offset(t.n, t.g, 0, 0, 0, 0);
        const STORAGE* filter = p.w.data + p.w.offset(t.g, t.o, 0, 0, 0, 0);
        ACCUMULATOR sum{};
        for (long long kd = 0; kd < q.kernel[0]; ++kd) {
            const long long d = source(q, 0, t.d, kd);
            for (long long kh = 0; kh < q.kernel[1]; ++kh) {
                const long long h = source(q, 1, t.h, kh);
                for (long long kw = 0; kw < q.kernel[2]; ++kw) {
                    const long long w = source(q, 2, t.w, kw);
                    const bool inside = d >= 0 && h >= 0 && w >= 0;
                    const STORAGE* x = image + p.x.offset(0, 0, 0, d, h, w);
                    const STORAGE* weight = filter + p.w.offset(0, 0, 0, kd, kh, kw);
#pragma unroll 4
                    for (long long c = 0; c < q.in_channels; ++c) {
                        sum = multiply_add(inside ? load(*x) : ACCUMULATOR{}, load(*weight), sum);
                        x += p.x.stride[2];
                        weight += p.w.stride[2];
                    }
                }
            }
        }
        write(p, t, sum);
    }
}

template <class T>
__device__ inline T from_lane(T v, int mask) {
    return __shfl_xor_sync(0xffffffff, v, mask);
}
template <class T>
__device__ inline Complex<T> from_lane(Complex<T> v, int mask) {
    return {from_lane(v.real, mask), from_lane(v.imag, mask)};
}

extern "C" __global__ void __launch_bounds__(256, 3) direct_warp(const Direct p) {
    constexpr int LANES = 32;
    const Geometry& q = p.geometry;
    const int lane = threadIdx.x % LANES;
    const long long reduction = q.in_channels * q.kernel[0] * q.kernel[1] * q.kernel[2];
    const long long taps[] = {q.kernel[2], q.kernel[1], q.kernel[0]};  // the host sends no empty sums here
    const auto first = digits_of<4>((long long)lane, taps), further = digits_of<4>((long long)LANES, taps);
    const long long step = (long long)gridDim.x * blockDim.x / LANES;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / LANES; i < outputs(q); i += step) {
        const Target t = target_of(p, i);
        ACCUMULATOR sum{};
        auto term = first;
        for (long long r = lane; r < reduction; r += LANES) {
            const auto& [kw, kh, kd, c] = term.digit;
            const long long d = source(q, 0, t.d, kd), h = source(q, 1, t.h, kh), w = source(q, 2, t.w, kw);
            const bool inside = d >= 0 && h >= 0 && w >= 0;
            const ACCUMULATOR x = inside ? load(p.x.data[p.x.offset(t.n, t.g, c, d, h, w)]) : ACCUMULATOR{};
            sum = multiply_add(x, load(p.w.data[p.w.offset(t.g, t.o, c, kd, kh, kw)]), sum);
            advance(term, further, taps);
        }
        for (int mask = LANES / 2; mask > 0; mask /= 2) sum = add(sum, from_lane(sum, mask));
        if (lane == 0) write(p, t, sum);
    }
}
