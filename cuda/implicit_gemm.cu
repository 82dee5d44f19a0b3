// Implicit GEMM on tensor cores: y[p, o] = sum over k of x[p, k] * w[o, k], where p counts target positions through all
// images and k the products of one sum, channel by channel of each tap. The matrix x is never made: its tiles are
// gathered from the input into shared memory.
//
// A block computes TILE_POSITIONS x TILE_CHANNELS outputs of one group in steps of 64 bytes of k. Its shared memory is a
// ring of STAGES steps: while the cores work on one, the copies of STAGES - 1 later ones are under way. Both tiles have k
// along their rows. An input whose channels lie together is copied as it is; of any other, neighbouring threads read
// neighbouring positions, so that is where it is transposed.
//
// Where the outputs alone are too few blocks to fill a GPU, several share a tile, each with a part of the sum: their
// results go to memory and are added in order by `add_splits` (cuda/splits.cu).
//
// GROUPED: what the kernel sees as one group is several, with a block-diagonal weight (GROUPED_SUMS) or result
// (GROUPED_RESULTS); see fastconv/gpu/bundling.py.
#include "implicit_gemm.cuh"
#include "operands.cuh"
#include "products.cuh"

// The order of Grouping in fastconv/gpu/tensor_cores.py.
enum Grouping { ONE_GROUP, GROUPED_SUMS, GROUPED_RESULTS };

constexpr int WARP_ROWS = TILE_POSITIONS / WARP_POSITIONS, WARP_COLUMNS = TILE_CHANNELS / WARP_CHANNELS;
constexpr int THREADS = 32 * WARP_ROWS * WARP_COLUMNS;
constexpr int CHUNK = CHUNK_BYTES / sizeof(STORAGE), DEPTH = ROW_CHUNKS * CHUNK;
constexpr int STAGE_BYTES = (TILE_POSITIONS + TILE_CHANNELS) * ROW_BYTES;

// RUN consecutive k are consecutive channels of one tap, VECTOR of them adjacent in memory and aligned.
static_assert(CHUNK % RUN == 0 && RUN % VECTOR == 0, "chunks are made of runs, runs of vectors");
static_assert(!BY_PRODUCT || RUN == 1, "runs are of channels of one tap");
constexpr int VECTOR_BYTES = VECTOR * sizeof(STORAGE);
constexpr bool ASYNCHRONOUS = VECTOR_BYTES >= 4;  // the narrowest asynchronous copy

// Products of a sum, and steps that they fill.
__device__ inline int reduction_of(const Geometry& q) {
    return (int)(q.in_channels * q.kernel[0] * q.kernel[1] * q.kernel[2]);
}
__device__ inline int steps_of(const Geometry& q) { return (reduction_of(q) + DEPTH - 1) / DEPTH; }

// -- copies into a stage ---------------------------------------------------------------------------------------------

// Chunk `unit` of the tile of x. A warp copies whole rows where these lie together in memory, else a column of chunks.
__device__ inline int row_of(int unit) { return VECTOR > 1 ? unit / ROW_CHUNKS : unit % TILE_POSITIONS; }
__device__ inline int chunk_of(int unit) { return VECTOR > 1 ? unit % ROW_CHUNKS : unit / TILE_POSITIONS; }

constexpr int X_COPIES = TILE_POSITIONS * ROW_CHUNKS / THREADS, W_COPIES = TILE_CHANNELS * ROW_CHUNKS / THREADS;
constexpr int SOURCES = VECTOR > 1 ? X_COPIES : 1;  // rows that a thread copies from
static_assert(TILE_POSITIONS * ROW_CHUNKS % THREADS == 0 && TILE_CHANNELS * ROW_CHUNKS % THREADS == 0, "even shares");
static_assert(VECTOR > 1 || THREADS % TILE_POSITIONS == 0, "a thread copies a column of chunks of one row");

// What a thread carries of the next stage where there are no asynchronous copies of so few bytes.
struct Carried {
    Vector<STORAGE, CHUNK> chunk[ASYNCHRONOUS ? 1 : X_COPIES];
};

// Where product `product` is read for a row, if it is one that is there, or in padding that is not zeros.
struct Read {
    const STORAGE* from;
    bool there, padded;
};

__device__ inline Tap tap_of(const ImplicitGemm& p, int product) {
    return p.taps[BY_PRODUCT ? product : quotient(product, p.channels)];
}

__device__ inline Read read_of(const ImplicitGemm& p, const Source& source, int product, int reduction) {
    const bool real = product < reduction;
    const Tap tap = tap_of(p, real ? product : 0);
    const bool within = inside(p.geometry, source, tap);
    Read read{source.data + tap.offset, real && within, real && !within && p.geometry.padding_mode != ZEROS};
    if (!BY_PRODUCT) read.from += (product - quotient(product, p.channels) * p.channels.value) * p.x.stride[2];
    return read;
}

// Read the element that stands for one in the padding.
__device__ inline void mend(const ImplicitGemm& p, const Source& source, int product, Read& read) {
    if (!read.padded) return;
    read.from += elsewhere(p.x, p.geometry, source, tap_of(p, product));
    read.there = true;
}

// Whether a chunk's elements in the padding are mended in a loop after all others: with that in the code of each element
// a kernel takes twice as long to compile. Of bytes all loads would then begin at once, and registers would not suffice.
constexpr bool MENDED_LATER = RUN == 1 && sizeof(STORAGE) == 2;

__device__ inline void copy_x(const ImplicitGemm& p, const Source (&source)[SOURCES], bool whole, int k, int reduction,
                              unsigned char* stage, Carried& carried) {
#pragma unroll
    for (int i = 0; i < X_COPIES; ++i) {
        const int unit = threadIdx.x + i * THREADS, chunk = chunk_of(unit), first = k + chunk * CHUNK;
        unsigned char* to = stage + swizzled(row_of(unit), chunk);
        const Source& here = source[i % SOURCES];
        const auto put = [&](int element, const STORAGE* from, bool there) {
            if constexpr (ASYNCHRONOUS)
                copy_async<VECTOR_BYTES>(to + element * sizeof(STORAGE), from, there);
            else
                carried.chunk[i].lane[element] = there ? *from : STORAGE{};
        };
        if (BY_PRODUCT && whole && first + CHUNK <= reduction) {
#pragma unroll
            for (int e = 0; e < CHUNK; ++e) put(e, here.data + p.taps[first + e].offset, true);
            continue;
        }
#pragma unroll
        for (int run = 0; run < CHUNK; run += RUN) {
            Read read = read_of(p, here, first + run, reduction);
            if (!MENDED_LATER) mend(p, here, first + run, read);
#pragma unroll
            for (int v = 0; v < RUN; v += VECTOR, read.from += VECTOR * p.x.stride[2]) put(run + v, read.from, read.there);
        }
        if constexpr (MENDED_LATER)
            if (!whole && p.geometry.padding_mode != ZEROS)
#pragma unroll 1
                for (int element = 0; element < CHUNK; ++element) {
                    Read read = read_of(p, here, first + element, reduction);
                    if (!read.padded) continue;
                    mend(p, here, first + element, read);
                    const STORAGE v = *read.from;
#pragma unroll
                    for (int lane = 0; lane < CHUNK; ++lane)  // registers have no index
                        if (lane == element) carried.chunk[i].lane[lane] = v;
                }
    }
}

__device__ inline void deposit(const Carried& carried, unsigned char* stage) {
    if constexpr (!ASYNCHRONOUS)
#pragma unroll
        for (int i = 0; i < X_COPIES; ++i) {
            const int unit = threadIdx.x + i * THREADS;
            *reinterpret_cast<Vector<STORAGE, CHUNK>*>(stage + swizzled(row_of(unit), chunk_of(unit))) =
                carried.chunk[i];
        }
}

// Columns of the block's tile, which are rows of the weight.
struct Columns {
    int first, end;
};

// `weight` points at product k of the block's first channel.
__device__ inline void copy_w(const STORAGE* weight, int depth, const Columns& some, unsigned char* stage) {
#pragma unroll
    for (int i = 0; i < W_COPIES; ++i) {
        const int unit = threadIdx.x + i * THREADS, row = unit / ROW_CHUNKS, chunk = unit % ROW_CHUNKS;
        const bool there = (GROUPED != GROUPED_RESULTS || row >= some.first) && row < some.end;
        copy_async<CHUNK_BYTES>(stage + TILE_POSITIONS * ROW_BYTES + swizzled(row, chunk),
                                weight + (there ? (long long)row * depth : 0) + chunk * CHUNK, there);
    }
}

// -- products of a stage ---------------------------------------------------------------------------------------------

constexpr int ROWS = WARP_POSITIONS / 16, COLUMNS = WARP_CHANNELS / 8;  // products of a warp
using Sums = ACCUMULATOR[ROWS][COLUMNS][4];

// The warp's first row and column in the block's tile.
__device__ inline int warp_row() { return threadIdx.x / 32 / WARP_COLUMNS * WARP_POSITIONS; }
__device__ inline int warp_column() { return threadIdx.x / 32 % WARP_COLUMNS * WARP_CHANNELS; }

// The columns of the groups that these channels of x, or for a weight gradient these images of it, are of.
__device__ inline Columns columns_of(const ImplicitGemm& p, int first, int last) {
    const int outputs = (int)p.group_outputs;
    return {quotient(first, p.group_channels) * outputs, (quotient(last, p.group_channels) + 1) * outputs};
}

// GROUPED_SUMS: those whose groups have any of the products of one instruction, which are channels of one tap.
__device__ inline Columns columns_of_products(const ImplicitGemm& p, int product) {
    const int channel = product - quotient(product, p.channels) * (int)p.channels.value;
    return columns_of(p, channel, channel + 2 * CHUNK - 1);
}

// GROUPED_RESULTS: those whose groups have any of `rows` positions.
__device__ inline Columns columns_of_rows(const ImplicitGemm& p, long long first, int rows) {
    const Geometry& q = p.geometry;
    const long long targets = q.count[0] * q.count[1] * q.count[2];
    const long long image = p.images_fastest ? first % q.batch : first / targets;
    const long long last = p.images_fastest ? image + rows - 1 : (first + rows - 1) / targets;
    if (last < q.batch) return columns_of(p, (int)image, (int)last);
    return columns_of(p, p.images_fastest ? 0 : (int)image, (int)q.batch - 1);  // on with the first images, or past the end
}

// `product` is the first of the stage; `of_rows` are the columns that the warp's positions meet.
__device__ inline void compute(const ImplicitGemm& p, int product, const Columns& of_rows, const unsigned char* stage,
                               Sums& sums) {
    const unsigned char* x = stage;
    const unsigned char* w = stage + TILE_POSITIONS * ROW_BYTES;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int chunk = 0; chunk < ROW_CHUNKS; chunk += 2) {
        const Columns some = GROUPED == GROUPED_SUMS ? columns_of_products(p, product + chunk * CHUNK) : of_rows;
        const auto left_out = [&](int from, int end) { return GROUPED && (end <= some.first || some.end <= from); };
        if (left_out(warp_column(), warp_column() + WARP_CHANNELS)) continue;
        FragmentA a[ROWS];
        FragmentB b[COLUMNS];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            load_matrices(a[i].part[0], x + swizzled(warp_row() + i * 16 + lane % 16, chunk + lane / 16));
            refine(a[i], STORAGE{});
        }
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 2) {
            unsigned int both[4];  // of columns j and j + 1
            load_matrices(both, w + swizzled(warp_column() + (j + lane / 16) * 8 + lane % 8, chunk + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < 4; ++i) b[j + i / 2].part[0][i % 2] = both[i];
            refine(b[j], STORAGE{});
            refine(b[j + 1], STORAGE{});
        }
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            if (left_out(warp_column() + j * 8, warp_column() + j * 8 + 8)) continue;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) multiply(sums[i][j], a[i], b[j], STORAGE{});
        }
    }
}

// -- results ---------------------------------------------------------------------------------------------------------

// The outputs pass through the memory of the stages in bands, 16 rows of every warp. A warp's sums are pairs of columns in
// 8 rows; what it writes are vectors of 16 bytes, neighbouring threads neighbouring ones, along channels or along
// positions. So a band has lines of channels or of positions, and whoever writes a vector reads it as one.
//
// Banks: lines of channels are 8 longer than they need be, which puts the pairs of a half warp, 4 in each of 4 rows, into
// different ones; lines of positions are 4 longer, which does it for a warp's elements, 8 in each of 4 lines. Results of 2
// bytes are read as two quarters of 16 bytes each, by 8 threads 32 bytes apart: of channels the second four threads would
// meet the first ones, so behind every 32 channels neighbouring quarters change places.
constexpr int BAND = WARP_ROWS * 16, ROW_LINE = TILE_CHANNELS + 8, COLUMN_LINE = BAND + 4, QUARTER = 4;
constexpr int BAND_ELEMENTS = BAND * ROW_LINE > TILE_CHANNELS * COLUMN_LINE ? BAND * ROW_LINE : TILE_CHANNELS * COLUMN_LINE;

struct Results {
    ACCUMULATOR band[BAND_ELEMENTS];
    long long at[BAND], residual_at[BAND];  // what column 0 of each row writes, in y or among the parts, and adds
    int column[BAND];                       // the first of the row's own group
};

__device__ inline int in_row(int row, int column) { return row * ROW_LINE + (column ^ (column / 32 % 2 * QUARTER)); }
__device__ inline int in_column(int row, int column) { return column * COLUMN_LINE + row; }

// The row of the tile that row `row` of band `band` is.
__device__ inline int tile_row(int band, int row) { return row / 16 * WARP_POSITIONS + band * 16 + row % 16; }

struct Block {
    long long first, left;  // the first position, and how many there are from there on
    int channel;            // the first
    int group, split;
};

// The sum of one output by its definition. Its own group's channels alone are in it, so nothing of another one is.
__device__ inline ACCUMULATOR sum_of_group(const ImplicitGemm& p, const Block& block, int position, long long o) {
    const Geometry& q = p.geometry;
    const Position t = position_of(q, block.first, position, p.images_fastest);
    const long long channels = p.group_channels.value, first = o / p.group_outputs * channels;
    View<const STORAGE> image = p.x;
    image.data += p.x.offset(t.n, block.group, first, 0, 0, 0);
    const long long line = q.kernel[2] * q.in_channels;
    const View<const STORAGE> filter{p.weight + (block.group * q.out_channels + o) * steps_of(q) * DEPTH + first,
                                     {0, 0, 1, q.kernel[1] * line, line, q.in_channels}};
    return sum_products(q, image, filter, channels, t.d, t.h, t.w);
}

// Find out where row `row` of a band goes, which is this position of the block.
__device__ inline void place_row(const ImplicitGemm& p, const Block& block, int position, int row, Results& results) {
    const Geometry& q = p.geometry;
    Position t = position_of(q, block.first, position, p.images_fastest);
    long long group = block.group, groups = q.groups, images = q.batch, outputs = q.out_channels, column = 0;
    if (GROUPED == GROUPED_RESULTS) {
        const int own = quotient((int)t.n, p.group_channels);
        const long long together = outputs / p.group_outputs;
        images = p.group_channels.value;
        outputs = p.group_outputs;
        column = own * outputs;
        group = group * together + own;
        groups *= together;
        t.n -= own * images;
    }
    if (p.partial) {
        const long long targets = q.count[0] * q.count[1] * q.count[2];
        const long long target = (t.d * q.count[1] + t.h) * q.count[2] + t.w;
        const long long number = p.images_fastest ? target * images + t.n : t.n * targets + target;
        const long long part = (block.split * groups + group) * images * targets * outputs;
        results.at[row] = part + (p.channels_fastest ? number * outputs - column : number - column * images * targets);
    } else {
        results.at[row] = p.y.offset(t.n, group, -column, t.d, t.h, t.w);
    }
    results.residual_at[row] = p.epilogue.residual.offset(t.n, group, -column, t.d, t.h, t.w);
    results.column[row] = (int)column;
}

// Sum anew what is not finite: it may be so by another group's channels.
__device__ inline void mend_band(const ImplicitGemm& p, const Block& block, int band, Results& results) {
#pragma unroll 1
    for (int i = threadIdx.x; i < BAND * TILE_CHANNELS; i += THREADS) {
        const int row = i / TILE_CHANNELS, column = i % TILE_CHANNELS, position = tile_row(band, row);
        const long long o = block.channel + column;
        ACCUMULATOR& sum = results.band[p.channels_fastest ? in_row(row, column) : in_column(row, column)];
        if (position < block.left && o < p.geometry.out_channels && sum - sum != 0)
            sum = sum_of_group(p, block, position, o);
    }
}

// Give `put` the band's sums in vectors of N, each with its first row and channel.
template <int N, class Put>
__device__ inline void write_band(const ImplicitGemm& p, const Block& block, int band, const Results& results,
                                  const Put& put) {
    const Geometry& q = p.geometry;
#pragma unroll 1  // the epilogue is long
    for (int i = threadIdx.x * N; i < BAND * TILE_CHANNELS; i += THREADS * N) {
        const int row = p.channels_fastest ? i / TILE_CHANNELS : i % BAND;
        const int column = p.channels_fastest ? i % TILE_CHANNELS : i / BAND;
        const long long o = block.channel + column;
        if (tile_row(band, row) >= block.left || o >= q.out_channels) continue;
        if (GROUPED == GROUPED_RESULTS && !below(column - results.column[row], p.group_outputs)) continue;
        const auto at = [&](int lane) {
            return p.channels_fastest ? in_row(row, column + lane) : in_column(row + lane, column);
        };
        put(read_sums<N>(results.band, at), row, o);
    }
}

template <int N>
__device__ inline void write_parts(const ImplicitGemm& p, const Block& block, int band, const Results& results) {
    const long long line = (GROUPED == GROUPED_RESULTS ? p.group_channels.value : p.geometry.batch) *
                           p.geometry.count[0] * p.geometry.count[1] * p.geometry.count[2];
    write_band<N>(p, block, band, results, [&](const Vector<ACCUMULATOR, N>& sums, int row, long long o) {
        ACCUMULATOR* to = p.partial + results.at[row] + o * (p.channels_fastest ? 1 : line);
        *reinterpret_cast<Vector<ACCUMULATOR, N>*>(to) = sums;
    });
}

constexpr int RESULT_VECTOR = 16 / sizeof(RESULT);  // elements of 16 bytes

template <int N>
__device__ inline void write_finished(const ImplicitGemm& p, const Block& block, int band, const Results& results) {
    write_band<N>(p, block, band, results, [&](const Vector<ACCUMULATOR, N>& sums, int row, long long o) {
        finish(p.epilogue, sums, block.group * p.geometry.out_channels + o, p.channels_fastest,
               results.residual_at[row] + o * p.epilogue.residual.stride[2],
               p.y.data + results.at[row] + o * p.y.stride[2]);
    });
}

// Band `band` of the warp's sums, into shared memory.
__device__ inline void put_band(const ImplicitGemm& p, int band, const Sums& sums, Results& results) {
    const int lane = threadIdx.x % 32;
    const int row = warp_row() / WARP_POSITIONS * 16 + lane / 4, column = warp_column() + lane % 4 * 2;
#pragma unroll
    for (int its = 0; its < ROWS; ++its)  // registers have no index
        if (its == band)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
                for (int i = 0; i < 4; i += 2) {
                    const int r = row + i * 4, c = column + j * 8;
                    const Vector<ACCUMULATOR, 2> pair{sums[its][j][i], sums[its][j][i + 1]};
                    if (p.channels_fastest) {
                        *reinterpret_cast<Vector<ACCUMULATOR, 2>*>(&results.band[in_row(r, c)]) = pair;
                    } else {
                        results.band[in_column(r, c)] = pair.lane[0];
                        results.band[in_column(r, c + 1)] = pair.lane[1];
                    }
                }
}

__device__ inline void write_results(const ImplicitGemm& p, const Block& block, const Sums& sums, Results& results) {
#pragma unroll 1
    for (int band = 0; band < ROWS; ++band) {
        put_band(p, band, sums, results);
        if (threadIdx.x < BAND) place_row(p, block, tile_row(band, threadIdx.x), threadIdx.x, results);
        __syncthreads();
        if (GROUPED == GROUPED_SUMS) {
            mend_band(p, block, band, results);
            __syncthreads();
        }
        if (p.partial)
            p.vectors ? write_parts<PARTIAL_VECTOR>(p, block, band, results) : write_parts<1>(p, block, band, results);
        else
            p.vectors ? write_finished<RESULT_VECTOR>(p, block, band, results) : write_finished<1>(p, block, band, results);
        __syncthreads();
    }
}

// Channels are counted fastest, so that blocks which read the same input run at the same time.
__device__ inline Block this_block(const ImplicitGemm& p) {
    const Geometry& q = p.geometry;
    const unsigned int across = (unsigned int)((q.out_channels + TILE_CHANNELS - 1) / TILE_CHANNELS);
    Block block;
    block.first = (long long)(blockIdx.x / across) * TILE_POSITIONS;
    block.left = q.batch * q.count[0] * q.count[1] * q.count[2] - block.first;
    block.channel = blockIdx.x % across * TILE_CHANNELS;
    block.group = blockIdx.z;
    block.split = blockIdx.y;
    return block;
}

// Turing has too little shared memory for more than one block, and needs more registers.
#if defined(__CUDACC__) && __CUDA_ARCH__ < 800
constexpr int RESIDENT_BLOCKS = 1;
#else
constexpr int RESIDENT_BLOCKS = BLOCKS_PER_SM;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS) implicit_gemm(const ImplicitGemm p) {
    const Geometry& q = p.geometry;
    const Block block = this_block(p);
    const int reduction = reduction_of(q);
    const int steps = steps_of(q), depth = steps * DEPTH;
    const int first = (int)((long long)steps * block.split / p.splits);
    const int end = (int)((long long)steps * (block.split + 1) / p.splits);
    const STORAGE* weight = p.weight + (block.group * q.out_channels + block.channel) * depth;

    Source source[SOURCES];
#pragma unroll
    for (int i = 0; i < SOURCES; ++i) {
        const Position t = position_of(q, block.first, row_of(threadIdx.x + i * THREADS), p.images_fastest);
        source[i] = source_of(p.x, q, t, block.group);
    }
    const bool whole = RUN == 1 && window_inside(q, source[0]);

    const long long channels = q.out_channels - block.channel;
    Columns some{0, channels < TILE_CHANNELS ? (int)channels : TILE_CHANNELS}, of_rows{};
    if (GROUPED == GROUPED_RESULTS) {
        some = columns_of_rows(p, block.first, TILE_POSITIONS);
        of_rows = columns_of_rows(p, block.first + warp_row(), WARP_POSITIONS);
    }

    Sums sums{};
    // The first rounds only fill the ring. Empty groups are committed, too, because what is waited for is counted in them.
    for (int step = first - (STAGES - 1), slot = 0; step < end; ++step) {
        if (step >= first) {
            wait_for_copies<STAGES - 2>();
            __syncthreads();  // this step is there, and no warp reads any more what the next copies overwrite
        }
        const int later = step + STAGES - 1, next = slot;
        unsigned char* to = dynamic_shared + next * STAGE_BYTES;
        Carried carried;
        if (later < end) {
            copy_x(p, source, whole, later * DEPTH, reduction, to, carried);
            copy_w(weight + later * DEPTH, depth, some, to);
        }
        commit_copies();
        slot = next + 1 == STAGES ? 0 : next + 1;  // the oldest one
        if (step >= first) compute(p, step * DEPTH, of_rows, dynamic_shared + slot * STAGE_BYTES, sums);
        if (later < end) deposit(carried, to);
    }
    wait_for_copies<0>();
    __syncthreads();
    // Two parts of each operand leave no registers to keep the block's place in: it is found again.
    write_results(p, SPLIT ? this_block(p) : block, sums, *reinterpret_cast<Results*>(dynamic_shared));
}
