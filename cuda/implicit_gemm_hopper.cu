// Implicit GEMM for Hopper: y[p, o] = sum over k of x[p, k] * w[o, k], where p counts target positions through all images
// and k the products of one sum, channel by channel of each tap. The copy engine gathers both matrices: it knows how the
// positions of a convolution run through an image (cuda/tma.cuh), so no thread computes an address of x.
//
// The grid fills the GPU once, and each block computes tile after tile of TILE_POSITIONS x TILE_CHANNELS outputs. Its
// shared memory is a ring of STAGES steps; a step is 128 bytes of the channels of one tap, for all rows of both matrices.
// One thread of the first warpgroup has them copied, and runs ahead, into the next tile, as far as the ring goes; the
// other two warpgroups multiply, each one half of the tile's positions. Two barriers for each stage keep them in step:
// `full` ends a phase when the bytes are there, `empty` when the products that read them are done.
#include "epilogue.cuh"
#include "gather.cuh"
#include "wgmma.cuh"

struct ImplicitGemmHopper {
    TensorMap x, weight;
    View<RESULT> y;
    Geometry geometry;
    Epilogue epilogue;
    long long axes;     // of x, as its map has them
    long long vectors;  // VECTOR neighbouring channels of y, the residual and the bias lie together, aligned
    long long unused[5];  // up to a multiple of what TensorMap is aligned to
};

constexpr int WARPS = 4, WARPGROUP = 32 * WARPS;
constexpr int CONSUMERS = 2;  // warpgroups that multiply
constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr int BLOCKS_OF_ROWS = TILE_POSITIONS / CONSUMERS / 64;  // products along the rows of a warpgroup
static_assert(TILE_POSITIONS % (CONSUMERS * 64) == 0, "a product has 64 rows");

// Registers of a thread: the third of the file that each warpgroup is given, less what a copying thread has no need of.
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

constexpr int STEP_CHANNELS = SWIZZLED_ROW_BYTES / sizeof(STORAGE);
constexpr int X_BYTES = TILE_POSITIONS * SWIZZLED_ROW_BYTES, W_BYTES = TILE_CHANNELS * SWIZZLED_ROW_BYTES;

// Outputs pass through shared memory in bands of 16 rows and 32 columns of a warp, from where neighbouring threads write
// neighbouring vectors. 8 columns more put the pairs of a half warp, 4 in each of 4 rows, into different banks. Vectors of
// 2-byte results are read as two quarters of 16 bytes each, by 8 threads in two rows: as neighbouring quarters of every
// second row change places, these do not meet.
constexpr int BAND = 32, VECTOR = 16 / sizeof(RESULT), ROW = BAND + 8, QUARTER = 4;

struct Band {
    ACCUMULATOR sum[16 * ROW];
    long long y_at[16], residual_at[16];  // what channel 0 of each row writes and adds
};

__device__ inline int in_band(int row, int column) { return row * ROW + (column ^ (row % 2 * QUARTER)); }

struct Shared {
    unsigned char stage[STAGES][X_BYTES + W_BYTES];
    Band band[CONSUMERS * WARPS];
    Barrier full[STAGES], empty[STAGES];
};

__device__ inline Shared& shared() { return *reinterpret_cast<Shared*>(dynamic_shared); }

// A place in the ring, and the parity of the phase in which it is filled.
struct Place {
    int stage = 0, parity = 0;

    __device__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// -- what a block computes -------------------------------------------------------------------------------------------

struct Tile {
    long long first, left;  // the first position, and how many there are from there on
    int channel;            // the first
};

__device__ inline long long positions(const Geometry& q) { return q.batch * q.count[0] * q.count[1] * q.count[2]; }

// Channels are counted fastest, so that blocks which read the same input run at the same time.
__device__ inline unsigned int tiles_across(const Geometry& q) {
    return (unsigned int)((q.out_channels + TILE_CHANNELS - 1) / TILE_CHANNELS);
}

__device__ inline unsigned int count_tiles(const Geometry& q) {
    return (unsigned int)((positions(q) + TILE_POSITIONS - 1) / TILE_POSITIONS) * tiles_across(q);
}

__device__ inline Tile tile_of(const Geometry& q, unsigned int number) {
    Tile tile;
    tile.first = (long long)(number / tiles_across(q)) * TILE_POSITIONS;
    tile.left = positions(q) - tile.first;
    tile.channel = number % tiles_across(q) * TILE_CHANNELS;
    return tile;
}

// -- copies: one thread ----------------------------------------------------------------------------------------------

__device__ inline void copy_tile(const ImplicitGemmHopper& p, const Tile& tile, Place& place) {
    const Geometry& q = p.geometry;
    const Position t = position_of(q, tile.first, 0, false);
    Pixel pixel;
    pixel.at[0] = (int)(t.w * q.stride[2] - q.offset[2]);
    pixel.at[1] = (int)(t.h * q.stride[1] - q.offset[1]);
    pixel.at[2] = (int)(t.d * q.stride[0] - q.offset[0]);
    pixel.n = (int)t.n;
    int tap = 0;
    for (int d = 0; d < q.kernel[0]; ++d)
        for (int h = 0; h < q.kernel[1]; ++h)
            for (int w = 0; w < q.kernel[2]; ++w, ++tap) {
                pixel.tap[0] = (unsigned short)(w * q.dilation[2]);
                pixel.tap[1] = (unsigned short)(h * q.dilation[1]);
                pixel.tap[2] = (unsigned short)(d * q.dilation[0]);
                for (int channel = 0; channel < q.in_channels; channel += STEP_CHANNELS, place.advance()) {
                    unsigned char* stage = shared().stage[place.stage];
                    Barrier& full = shared().full[place.stage];
                    wait_for_phase(shared().empty[place.stage], place.parity ^ 1);  // of what lay there before
                    arrive_expecting(full, X_BYTES + W_BYTES);
                    copy_pixels(stage, p.x, full, (int)p.axes, channel, pixel);
                    copy_box(stage + X_BYTES, p.weight, full, channel, tap, tile.channel);
                }
            }
}

// -- products: a warpgroup -------------------------------------------------------------------------------------------

using Sums = ACCUMULATOR[BLOCKS_OF_ROWS][TILE_CHANNELS / 2];

// Let the stage be overwritten: this warp has read it.
__device__ inline void release(int stage) {
    if (threadIdx.x % 32 == 0) arrive(shared().empty[stage]);
}

__device__ inline void multiply_tile(int consumer, int steps, Place& place, Sums& sums) {
    int before = 0;
    for (int step = 0; step < steps; ++step) {
        const unsigned char* stage = shared().stage[place.stage];
        const unsigned long long a = operand(stage) + consumer * BLOCKS_OF_ROWS * NEXT_64_ROWS;
        const unsigned long long b = operand(stage + X_BYTES);
        wait_for_phase(shared().full[place.stage], place.parity);
        begin_products();
#pragma unroll
        for (int k = 0; k < SWIZZLED_ROW_BYTES / 32; ++k)
#pragma unroll
            for (int i = 0; i < BLOCKS_OF_ROWS; ++i)
                multiply(sums[i], a + i * NEXT_64_ROWS + k * NEXT_PRODUCT, b + k * NEXT_PRODUCT, STORAGE{});
        commit_products();
        wait_for_products<1>();  // those of the step before: while the cores work on this one, the next is waited for
        if (step > 0) release(before);
        before = place.stage;
        place.advance();
    }
    wait_for_products<0>();
    if (steps > 0) release(before);  // an input gradient has places that no tap reaches
#pragma unroll
    for (int i = 0; i < BLOCKS_OF_ROWS; ++i)
#pragma unroll
        for (int j = 0; j < TILE_CHANNELS / 2; ++j) receive(sums[i][j]);
}

// -- results: a warp -------------------------------------------------------------------------------------------------

// Where the outputs of the band's 16 rows go, of which the first is row `row` of the tile.
__device__ inline void find_rows(const ImplicitGemmHopper& p, const Tile& tile, int row, Band& band) {
    const int lane = threadIdx.x % 32;
    if (lane >= 16) return;
    const Position t = position_of(p.geometry, tile.first, row + lane, false);
    band.y_at[lane] = p.y.offset(t.n, 0, 0, t.d, t.h, t.w);
    band.residual_at[lane] = p.epilogue.residual.offset(t.n, 0, 0, t.d, t.h, t.w);
}

template <int N>
__device__ inline void write_band(const ImplicitGemmHopper& p, const Tile& tile, int row, int channel, const Band& band) {
#pragma unroll 1  // the epilogue is long
    for (int i = threadIdx.x % 32 * N; i < 16 * BAND; i += 32 * N) {
        const int r = i / BAND, column = i % BAND;
        const long long o = channel + column;
        if (row + r >= tile.left || o >= p.geometry.out_channels) continue;
        const auto sums = read_sums<N>(band.sum, [&](int lane) { return in_band(r, column + lane); });
        finish(p.epilogue, sums, o, true, band.residual_at[r] + o * p.epilogue.residual.stride[2],
               p.y.data + band.y_at[r] + o * p.y.stride[2]);
    }
}

__device__ inline void write_tile(const ImplicitGemmHopper& p, const Tile& tile, int consumer, const Sums& sums) {
    constexpr int BANDS = TILE_CHANNELS / BAND;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % WARPS;
    Band& band = shared().band[consumer * WARPS + warp];
#pragma unroll 1
    for (int number = 0; number < BLOCKS_OF_ROWS * BANDS; ++number) {
        const int row = (consumer * BLOCKS_OF_ROWS + number / BANDS) * 64 + warp * 16;
        const int channel = tile.channel + number % BANDS * BAND;
        if (number % BANDS == 0) find_rows(p, tile, row, band);
#pragma unroll
        for (int its = 0; its < BLOCKS_OF_ROWS * BANDS; ++its)  // registers have no index
            if (its == number)
#pragma unroll
                for (int i = 0; i < BAND / 2; i += 2) {
                    Vector<ACCUMULATOR, 2> pair;
                    pair.lane[0] = sums[its / BANDS][its % BANDS * (BAND / 2) + i];
                    pair.lane[1] = sums[its / BANDS][its % BANDS * (BAND / 2) + i + 1];
                    *reinterpret_cast<Vector<ACCUMULATOR, 2>*>(
                        &band.sum[in_band(lane / 4 + i % 4 / 2 * 8, i / 4 * 8 + lane % 4 * 2)]) = pair;
                }
        __syncwarp();
        p.vectors ? write_band<VECTOR>(p, tile, row, channel, band) : write_band<1>(p, tile, row, channel, band);
        __syncwarp();
    }
}

// -- a block ---------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS, 1) implicit_gemm_hopper(const __grid_constant__ ImplicitGemmHopper p) {
    const Geometry& q = p.geometry;
    const unsigned int tiles = count_tiles(q);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            make_barrier(shared().full[stage], 1);
            make_barrier(shared().empty[stage], CONSUMERS * WARPS);
        }
        publish_barriers();
    }
    __syncthreads();

    Place place;
    if (threadIdx.x < WARPGROUP) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0)
            for (unsigned int tile = blockIdx.x; tile < tiles; tile += gridDim.x) copy_tile(p, tile_of(q, tile), place);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        const int consumer = threadIdx.x / WARPGROUP - 1;
        const int taps = (int)(q.kernel[0] * q.kernel[1] * q.kernel[2]);
        const int steps = taps * (int)((q.in_channels + STEP_CHANNELS - 1) / STEP_CHANNELS);
        for (unsigned int number = blockIdx.x; number < tiles; number += gridDim.x) {
            const Tile tile = tile_of(q, number);
            Sums sums{};
            multiply_tile(consumer, steps, place, sums);
            write_tile(p, tile, consumer, sums);
        }
    }
}
