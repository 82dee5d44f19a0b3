// Implicit GEMM: y[o, p] = sum over k of w[k, o] * x[k, p], where p counts target positions through all images and k
// the products of one sum. The matrix x is never made: its tiles are gathered from the input into shared memory.
//
// A block computes TILE_CHANNELS x TILE_POSITIONS outputs of one group in steps of TILE_DEPTH products; a thread keeps
// THREAD_CHANNELS x THREAD_POSITIONS of them in registers. While one step is computed from one half of the shared
// memory, the next is on its way through registers to the other half. Each output is summed in the order of k whatever
// the tile, so all tile shapes give the same bits.
#include "epilogue.cuh"
#include "gather.cuh"

struct Tiled {
    View<const STORAGE> x;
    const STORAGE* weight;  // (G, K rounded up to whole steps, O rounded up to whole Quads), filled up with zeros
    const Tap* taps;
    View<RESULT> y;
    Geometry geometry;
    Epilogue epilogue;
    long long channels_fastest;  // neighbouring threads write neighbouring channels, not positions
};

constexpr int TILE_DEPTH = 16;
constexpr int ROW_THREADS = TILE_POSITIONS / THREAD_POSITIONS;
constexpr int THREADS = TILE_CHANNELS / THREAD_CHANNELS * ROW_THREADS;
constexpr int QUAD = 4;  // a thread's outputs lie in runs of 4 channels by 4 positions

// VECTOR consecutive k are consecutive channels of one tap, and adjacent in memory.
using Gathered = Vector<STORAGE, VECTOR>;
using Weights = Vector<STORAGE, QUAD>;
using Quad = Vector<ACCUMULATOR, QUAD>;

constexpr int GATHERS = TILE_DEPTH / VECTOR * TILE_POSITIONS / THREADS;
constexpr int WEIGHT_QUADS = TILE_DEPTH * TILE_CHANNELS / QUAD;
constexpr int WEIGHT_LOADS = (WEIGHT_QUADS + THREADS - 1) / THREADS;
static_assert(THREADS % TILE_POSITIONS == 0 && GATHERS > 0, "a thread gathers for one position only");

// As many as the registers allow: 65536 an SM, of which the sums take up most.
constexpr int BLOCKS_PER_SM = THREAD_CHANNELS * THREAD_POSITIONS * sizeof(ACCUMULATOR) > 64 ? 2 : 3;

struct alignas(sizeof(Quad)) Step {
    ACCUMULATOR w[TILE_DEPTH][TILE_CHANNELS];
    ACCUMULATOR x[TILE_DEPTH][TILE_POSITIONS];
};

// The epilogue passes a band of the outputs, QUAD channels of every thread, through the memory of the steps, so that
// neighbouring threads write neighbouring elements. One column more keeps reading down a column free of bank conflicts.
constexpr int BAND = TILE_CHANNELS / THREAD_CHANNELS * QUAD;

struct Shared {
    union {
        Step step[2];
        ACCUMULATOR band[BAND][TILE_POSITIONS + 1];
    };
    long long y_at[TILE_POSITIONS], residual_at[TILE_POSITIONS];  // what channel 0 of each position writes and adds
};

__device__ inline Gathered gather(const Tiled& p, const Source& s, int k, int reduction) {
    if (k >= reduction) return {};
    const Tap tap = p.taps[k];
    const STORAGE* from = s.data + tap.offset;
    if (!inside(p.geometry, s, tap)) {
        if (p.geometry.padding_mode == ZEROS) return {};
        from += elsewhere(p.x, p.geometry, s, tap);
    }
    return *reinterpret_cast<const Gathered*>(from);
}

// What a thread carries of the next step while the present one is computed.
struct Carried {
    Gathered x[GATHERS];
    Weights w[WEIGHT_LOADS];
};

// `weight` points at the block's first channel of product `k`.
__device__ inline void fetch(const Tiled& p, const Source& s, const STORAGE* weight, int channels, int k, int reduction,
                             Carried& c) {
#pragma unroll
    for (int i = 0; i < GATHERS; ++i) {
        const int row = (threadIdx.x / TILE_POSITIONS + i * (THREADS / TILE_POSITIONS)) * VECTOR;
        c.x[i] = gather(p, s, k + row, reduction);
    }
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
        const int unit = threadIdx.x + i * THREADS;
        const int row = unit / (TILE_CHANNELS / QUAD), o = unit % (TILE_CHANNELS / QUAD) * QUAD;
        const bool inside = unit < WEIGHT_QUADS && blockIdx.y * TILE_CHANNELS + o < channels;
        c.w[i] = inside ? *reinterpret_cast<const Weights*>(weight + (long long)row * channels + o) : Weights{};
    }
}

__device__ inline void deposit(const Carried& c, Step& step) {
#pragma unroll
    for (int i = 0; i < GATHERS; ++i) {
        const int row = (threadIdx.x / TILE_POSITIONS + i * (THREADS / TILE_POSITIONS)) * VECTOR;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) step.x[row + v][threadIdx.x % TILE_POSITIONS] = load(c.x[i].lane[v]);
    }
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
        const int unit = threadIdx.x + i * THREADS;
        Quad quad;
#pragma unroll
        for (int v = 0; v < QUAD; ++v) quad.lane[v] = load(c.w[i].lane[v]);
        if (unit < WEIGHT_QUADS) reinterpret_cast<Quad*>(step.w)[unit] = quad;
    }
}

// Element `i` of a thread's `count`, in runs of QUAD that are `threads` runs apart: reading a run takes one instruction.
__device__ inline int spread(int i, int thread, int threads) {
    return (i / QUAD * threads + thread) * QUAD + i % QUAD;
}

using Sums = ACCUMULATOR[THREAD_CHANNELS][THREAD_POSITIONS];

__device__ inline void compute(const Step& step, int row, int column, Sums& sums) {
#pragma unroll
    for (int k = 0; k < TILE_DEPTH; ++k) {
        Quad w[THREAD_CHANNELS / QUAD], x[THREAD_POSITIONS / QUAD];
#pragma unroll
        for (int i = 0; i < THREAD_CHANNELS / QUAD; ++i)
            w[i] = *reinterpret_cast<const Quad*>(&step.w[k][spread(i * QUAD, row, THREADS / ROW_THREADS)]);
#pragma unroll
        for (int j = 0; j < THREAD_POSITIONS / QUAD; ++j)
            x[j] = *reinterpret_cast<const Quad*>(&step.x[k][spread(j * QUAD, column, ROW_THREADS)]);
#pragma unroll
        for (int i = 0; i < THREAD_CHANNELS; ++i)
#pragma unroll
            for (int j = 0; j < THREAD_POSITIONS; ++j)
                sums[i][j] = multiply_add(w[i / QUAD].lane[i % QUAD], x[j / QUAD].lane[j % QUAD], sums[i][j]);
    }
}

__device__ inline void write_band(const Tiled& p, const Shared& shared, int first_channel) {
    const Geometry& q = p.geometry;
    const long long positions = q.batch * q.count[0] * q.count[1] * q.count[2];
    const long long left = positions - (long long)blockIdx.x * TILE_POSITIONS;
    for (int i = threadIdx.x; i < BAND * TILE_POSITIONS; i += THREADS) {
        const int row = p.channels_fastest ? i % BAND : i / TILE_POSITIONS;
        const int column = p.channels_fastest ? i / BAND : i % TILE_POSITIONS;
        const long long o = first_channel + row;
        if (column < left && o < q.out_channels)
            finish(p.epilogue, shared.band[row][column], blockIdx.z * q.out_channels + o,
                   shared.residual_at[column] + o * p.epilogue.residual.stride[2],
                   p.y.data[shared.y_at[column] + o * p.y.stride[2]]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) tiled(const Tiled p) {
    __shared__ Shared shared;
    const Geometry& q = p.geometry;
    const int reduction = (int)(q.in_channels * q.kernel[0] * q.kernel[1] * q.kernel[2]);
    const int depth = (reduction + TILE_DEPTH - 1) / TILE_DEPTH * TILE_DEPTH;
    const int channels = (int)(q.out_channels + QUAD - 1) / QUAD * QUAD;
    const STORAGE* weight = p.weight + (long long)blockIdx.z * depth * channels + blockIdx.y * TILE_CHANNELS;
    const Position here = position_of(q, (long long)blockIdx.x * TILE_POSITIONS, threadIdx.x % TILE_POSITIONS, false);
    const Source source = source_of(p.x, q, here, blockIdx.z);
    const int row = threadIdx.x / ROW_THREADS, column = threadIdx.x % ROW_THREADS;

    if (threadIdx.x < TILE_POSITIONS) {
        shared.y_at[threadIdx.x] = p.y.offset(here.n, blockIdx.z, 0, here.d, here.h, here.w);
        shared.residual_at[threadIdx.x] = p.epilogue.residual.offset(here.n, blockIdx.z, 0, here.d, here.h, here.w);
    }

    Sums sums{};
    Carried carried;
    if (reduction) {
        fetch(p, source, weight, channels, 0, reduction, carried);
        deposit(carried, shared.step[0]);
    }
    __syncthreads();
    for (int k = TILE_DEPTH, now = 0; k < reduction + TILE_DEPTH; k += TILE_DEPTH, now ^= 1) {
        weight += (long long)TILE_DEPTH * channels;
        if (k < reduction) fetch(p, source, weight, channels, k, reduction, carried);
        compute(shared.step[now], row, column, sums);
        if (k < reduction) deposit(carried, shared.step[now ^ 1]);
        __syncthreads();
    }

#pragma unroll
    for (int band = 0; band < THREAD_CHANNELS / QUAD; ++band) {
#pragma unroll
        for (int i = 0; i < QUAD; ++i)
#pragma unroll
            for (int j = 0; j < THREAD_POSITIONS; ++j)
                shared.band[row * QUAD + i][spread(j, column, ROW_THREADS)] = sums[band * QUAD + i][j];
        __syncthreads();
        write_band(p, shared, blockIdx.y * TILE_CHANNELS + band * BAND);
        __syncthreads();
    }
}
