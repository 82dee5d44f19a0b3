// Winograd convolution in three steps: windows are transformed, cuBLAS multiplies the matrices of each component, the sums
// are transformed back. fastconv/winograd.py has the arithmetic.
//
// Between the steps a component is one matrix for each group: V (lines, tiles) of the windows, lines being input channels
// times kernel depth, and M (outputs, tiles) of the sums; or both transposed, where the caller's channels lie together. A
// tile is the outputs along each axis that come of one window. A dilated convolution falls apart into one for each residue
// of the dilation, whose tiles are counted as those of so many more images.
//
// Each thread transforms one window, weight or tile of sums in registers. All three kernels wait for the memory: a window
// of 6 x 6 takes 432 multiply-adds for the 36 numbers that it writes.
#include "digits.cuh"
#include "epilogue.cuh"
#include "products.cuh"

constexpr int MOST_WINDOW = 6, MOST_TAPS = 5;
constexpr int THREADS = 128;
constexpr int BLOCKS_PER_SM = 3;  // with registers for a window and what becomes of it

// Along one axis; zero beyond its window and its taps. Parameters lie in constant memory, where a multiply-add finds its
// factor without a load.
struct Matrices {
    ACCUMULATOR input[MOST_WINDOW][MOST_WINDOW];  // B
    ACCUMULATOR weight[MOST_WINDOW][MOST_TAPS];   // G
    ACCUMULATOR output[MOST_TAPS][MOST_WINDOW];   // A
};

struct Winograd {
    View<const STORAGE> x, w;
    ACCUMULATOR *weights, *windows, *sums;  // (components, groups, a matrix)
    View<RESULT> y;
    Geometry geometry;
    Epilogue epilogue;
    Matrices high, wide;
    long long first, tiles;      // which of the tiles of all images are in the matrices
    long long channels_fastest;  // the matrices are transposed
};

using Window = ACCUMULATOR[WINDOW_H][WINDOW_W];

__device__ inline unsigned int lines_of(const Geometry& q) { return q.in_channels * q.kernel[0]; }

// Where component 0 of element (row, column) of a group's matrix lies, and how far the components are apart.
struct Element {
    long long at, apart;
};

__device__ inline Element element_of(const Winograd& p, long long group, long long row, long long rows, long long column,
                                     long long columns) {
    const long long in_matrix = p.channels_fastest ? column * rows + row : row * columns + column;
    return {group * rows * columns + in_matrix, p.geometry.groups * rows * columns};
}

// What a thread transforms: row and column of the matrix of a group. The host sees to it that indices have 32 bits: a
// division of 64 is a function call, around which registers spill.
struct Job {
    unsigned int group, row, column;
};

__device__ inline Job job_of(const Winograd& p, unsigned int index, unsigned int rows, unsigned int columns) {
    const unsigned int fast = take(index, p.channels_fastest ? rows : columns);
    const unsigned int slow = take(index, p.channels_fastest ? columns : rows);
    return p.channels_fastest ? Job{index, fast, slow} : Job{index, slow, fast};
}

// to = high from wide', the transform of a matrix along both axes.
template <int OUT_H, int OUT_W, int IN_H, int IN_W, class High, class Wide>
__device__ inline void transform(const High& high, const Wide& wide, const ACCUMULATOR (&from)[IN_H][IN_W],
                                 ACCUMULATOR (&to)[OUT_H][OUT_W]) {
    ACCUMULATOR rows[IN_H][OUT_W];
#pragma unroll
    for (int i = 0; i < IN_H; ++i)
#pragma unroll
        for (int b = 0; b < OUT_W; ++b) {
            rows[i][b] = wide[b][0] * from[i][0];
#pragma unroll
            for (int j = 1; j < IN_W; ++j) rows[i][b] = multiply_add(wide[b][j], from[i][j], rows[i][b]);
        }
#pragma unroll
    for (int b = 0; b < OUT_W; ++b)
#pragma unroll
        for (int a = 0; a < OUT_H; ++a) {
            to[a][b] = high[a][0] * rows[0][b];
#pragma unroll
            for (int i = 1; i < IN_H; ++i) to[a][b] = multiply_add(high[a][i], rows[i][b], to[a][b]);
        }
}

__device__ inline void put(ACCUMULATOR* matrices, const Element& element, const Window& window) {
#pragma unroll
    for (int a = 0; a < WINDOW_H; ++a)
#pragma unroll
        for (int b = 0; b < WINDOW_W; ++b) matrices[element.at + (a * WINDOW_W + b) * element.apart] = window[a][b];
}

// The image and depth of a tile, and its first output along height and width; the others are a dilation apart.
struct Tile {
    unsigned int n, d, h, w;
};

// Take one of the residues of the dilation, and before it one of the tiles of that residue: the first output.
__device__ inline unsigned int take_tile(unsigned int& index, unsigned int count, unsigned int dilation, unsigned int outputs) {
    const unsigned int apart = outputs * dilation, tile = take(index, (count + apart - 1) / apart);
    return tile * apart + take(index, count < dilation ? count : dilation);
}

__device__ inline Tile tile_of(const Geometry& q, unsigned int index) {
    Tile t;
    t.w = take_tile(index, q.count[2], q.dilation[2], WINDOW_W + 1 - q.kernel[2]);
    t.h = take_tile(index, q.count[1], q.dilation[1], WINDOW_H + 1 - q.kernel[1]);
    t.d = take(index, (unsigned int)q.count[0]);
    t.n = index;
    return t;
}

// Where input `i` of a window reads along an axis; -1 for a zero, and past the padding, where no output looks.
__device__ inline int window_source(const Geometry& q, int axis, unsigned int target, int i) {
    const int at = resolve((int)target + i * (int)q.dilation[axis] - (int)q.offset[axis], (int)q.size[axis], q.padding_mode);
    return below(at, q.size[axis]) ? at : -1;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) transform_windows(const Winograd p) {
    const Geometry& q = p.geometry;
    const unsigned int lines = lines_of(q), step = gridDim.x * blockDim.x;
    for (unsigned int i = blockIdx.x * blockDim.x + threadIdx.x; i < q.groups * lines * p.tiles; i += step) {
        const Job job = job_of(p, i, lines, p.tiles);
        const Tile tile = tile_of(q, p.first + job.column);
        const unsigned int depth = (unsigned int)q.kernel[0], c = job.row / depth;
        const long long d = source(q, 0, tile.d, job.row % depth);
        const STORAGE* image = p.x.data + p.x.offset(tile.n, job.group, c, d, 0, 0);
        Window window, transformed;
#pragma unroll
        for (int a = 0; a < WINDOW_H; ++a) {
            const int h = window_source(q, 1, tile.h, a);
            const STORAGE* line = image + h * p.x.stride[4];
#pragma unroll
            for (int b = 0; b < WINDOW_W; ++b) {
                const int w = window_source(q, 2, tile.w, b);
                const bool inside = d >= 0 && h >= 0 && w >= 0;
                window[a][b] = inside ? load(line[w * p.x.stride[5]]) : ACCUMULATOR{};
            }
        }
        transform(p.high.input, p.wide.input, window, transformed);
        put(p.windows, element_of(p, job.group, job.row, lines, job.column, p.tiles), transformed);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) transform_weights(const Winograd p) {
    const Geometry& q = p.geometry;
    const unsigned int lines = lines_of(q), step = gridDim.x * blockDim.x;
    constexpr int TAPS_H = WINDOW_H < MOST_TAPS ? WINDOW_H : MOST_TAPS, TAPS_W = WINDOW_W < MOST_TAPS ? WINDOW_W : MOST_TAPS;
    for (unsigned int i = blockIdx.x * blockDim.x + threadIdx.x; i < q.groups * q.out_channels * lines; i += step) {
        // The matrix of weights stands on the other side of the product: its lines are columns.
        const Job job = job_of(p, i, q.out_channels, lines);
        const unsigned int depth = (unsigned int)q.kernel[0], c = job.column / depth, kd = job.column % depth;
        ACCUMULATOR taps[TAPS_H][TAPS_W];
#pragma unroll
        for (int a = 0; a < TAPS_H; ++a)
#pragma unroll
            for (int b = 0; b < TAPS_W; ++b) {
                const bool inside = a < q.kernel[1] && b < q.kernel[2];
                taps[a][b] = inside ? load(p.w.data[p.w.offset(job.group, job.row, c, kd, a, b)]) : ACCUMULATOR{};
            }
        Window transformed;
        transform(p.high.weight, p.wide.weight, taps, transformed);
        put(p.weights, element_of(p, job.group, job.row, q.out_channels, job.column, lines), transformed);
    }
}

// The sum by its definition.
__device__ inline ACCUMULATOR sum_of(const Winograd& p, const Tile& t, long long g, long long o, long long h, long long w) {
    View<const STORAGE> image = p.x, filter = p.w;
    image.data += p.x.offset(t.n, g, 0, 0, 0, 0);
    filter.data += p.w.offset(g, o, 0, 0, 0, 0);
    return sum_products(p.geometry, image, filter, p.geometry.in_channels, t.d, h, w);
}

constexpr int HIGH = WINDOW_H > 1 ? WINDOW_H - 1 : 1, WIDE = WINDOW_W > 1 ? WINDOW_W - 1 : 1;

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) transform_sums(const Winograd p) {
    // A thread's own: registers cannot be counted through, and one copy of the epilogue is large enough.
    __shared__ ACCUMULATOR outputs[HIGH * WIDE][THREADS];
    const Geometry& q = p.geometry;
    const int high = WINDOW_H + 1 - (int)q.kernel[1], wide = WINDOW_W + 1 - (int)q.kernel[2];
    const unsigned int step = gridDim.x * blockDim.x;
    for (unsigned int i = blockIdx.x * blockDim.x + threadIdx.x; i < q.groups * q.out_channels * p.tiles; i += step) {
        const Job job = job_of(p, i, q.out_channels, p.tiles);
        const Element element = element_of(p, job.group, job.row, q.out_channels, job.column, p.tiles);
        Window window;
#pragma unroll
        for (int a = 0; a < WINDOW_H; ++a)
#pragma unroll
            for (int b = 0; b < WINDOW_W; ++b) window[a][b] = p.sums[element.at + (a * WINDOW_W + b) * element.apart];
        ACCUMULATOR sums[HIGH][WIDE];
        transform(p.high.output, p.wide.output, window, sums);
#pragma unroll
        for (int a = 0; a < HIGH; ++a)
#pragma unroll
            for (int b = 0; b < WIDE; ++b) outputs[a * WIDE + b][threadIdx.x] = sums[a][b];

        const Tile t = tile_of(q, p.first + job.column);
        for (int a = 0, b = 0; a < high; ++b == wide ? ++a, b = 0 : 0) {
            const long long h = t.h + a * q.dilation[1], w = t.w + b * q.dilation[2];
            if (h >= q.count[1] || w >= q.count[2]) continue;
            ACCUMULATOR sum = outputs[a * WIDE + b][threadIdx.x];
            // An input that is not finite spoils its whole tile, and so may an overflow.
            if (sum - sum != 0) sum = sum_of(p, t, job.group, job.row, h, w);
            finish(p.epilogue, sum, job.group * q.out_channels + job.row,
                   p.epilogue.residual.offset(t.n, job.group, job.row, t.d, h, w),
                   p.y.data[p.y.offset(t.n, job.group, job.row, t.d, h, w)]);
        }
    }
}
