// Depthwise convolution, and grouped convolution with few channels in a group: halo tiles in shared memory, strips of
// results in registers.
//
// Between such channels there is no matrix product to be had: an input meets the kernel of its own group alone, so all
// that is shared is the input itself, by neighbouring results. A block stages the input of a tile of results, padded, in
// shared memory; from there on nothing is padding. A thread computes ROWS results down a column and takes the taps of
// that column of the kernel in vertical runs: with stride s and dilation d, rows r and r + 1 read input rows s apart, so
// taps s / d apart form a run, and an input that was read serves as many results as the run has taps,
//
//     ROWS + n - 1 inputs and n weights are loaded for n * ROWS multiply-adds.
//
// A multiprocessor loads 32 numbers and does 128 multiply-adds in a cycle, so four multiply-adds a load is the limit of
// the arithmetic: a run of 4 taps has 60 for 22 with 15 rows, 28 for 14 with 7. A 3 x 3 kernel waits for the memory.
//
// If images are rows, the host turns the tile round: geometry and views come with height and width exchanged.
#include "digits.cuh"
#include "epilogue.cuh"

struct Depthwise {
    View<const STORAGE> x;
    const STORAGE* weight;  // (C, KD, KW, KH, channels of all groups): the taps of a column, neighbouring channels together
    View<RESULT> y;
    Geometry geometry;
    Epilogue epilogue;
    long long slots, strips, columns;  // of a tile: groups, ROWS rows of results each, columns
    long long order;
};

// How a tile lies in shared memory and is walked through: as the caller's memory does. Order in
// fastconv/gpu/depthwise.py is the same.
enum Order { COLUMNS_FASTEST, ROWS_FASTEST, CHANNELS_FASTEST };

constexpr int THREADS = 256;
constexpr int RUN = 4;
constexpr int BLOCKS_PER_SM = sizeof(ACCUMULATOR) > 4 ? 2 : ROWS > 8 ? 3 : 4;  // as many as the registers allow

struct Place {
    int channel, row, column;
};

struct Layout {
    Order order;
    int channels, rows, columns;

    __device__ int size() const { return channels * rows * columns; }

    __device__ int at(int channel, int row, int column) const {
        if (order == CHANNELS_FASTEST) return (row * columns + column) * channels + channel;
        return order == ROWS_FASTEST ? (channel * columns + column) * rows + row : (channel * rows + row) * columns + column;
    }
};

// Visits every element of a layout: thread i elements i, i + THREADS, i + 2 THREADS and so on.
struct Walk {
    Layout layout;
    int radix[2];
    Digits<3, int> now, step;

    __device__ explicit Walk(const Layout& layout) : layout(layout) {
        radix[0] = layout.order == CHANNELS_FASTEST ? layout.channels
                   : layout.order == ROWS_FASTEST   ? layout.rows
                                                    : layout.columns;
        radix[1] = layout.order == COLUMNS_FASTEST ? layout.rows : layout.columns;
        now = digits_of<3>((int)threadIdx.x, radix);
        step = digits_of<3>(THREADS, radix);
    }

    __device__ void next() { advance(now, step, radix); }

    __device__ Place place() const {
        const auto& [first, second, third] = now.digit;
        if (layout.order == CHANNELS_FASTEST) return {first, third, second};
        return layout.order == ROWS_FASTEST ? Place{third, first, second} : Place{third, second, first};
    }
};

// Where a block's tile begins.
struct Corner {
    long long n;
    int group, depth, row, column;
};

__device__ inline Corner corner_of(const Depthwise& p) {
    const Geometry& q = p.geometry;
    const long long rows = p.strips * ROWS;
    long long block = blockIdx.x;
    Corner c;
    c.column = (int)(take(block, (q.count[2] + p.columns - 1) / p.columns) * p.columns);
    c.row = (int)(take(block, (q.count[1] + rows - 1) / rows) * rows);
    c.group = (int)(take(block, (q.groups + p.slots - 1) / p.slots) * p.slots);
    c.depth = (int)take(block, q.count[0]);
    c.n = block;
    return c;
}

// The input index that tap 0 of a result reads along an axis, before padding is thought of.
__device__ inline int begin(const Geometry& q, int axis, int target) {
    return (int)(target * q.stride[axis] - q.offset[axis]);
}

__device__ inline void stage(const Depthwise& p, const Corner& corner, int c, int kd, const Layout& tile,
                             ACCUMULATOR* staged) {
    const Geometry& q = p.geometry;
    const int d = resolve(begin(q, 0, corner.depth) + kd * (int)q.dilation[0], (int)q.size[0], q.padding_mode);
    const int row = begin(q, 1, corner.row), column = begin(q, 2, corner.column);
    Walk walk(tile);
#pragma unroll 4
    for (int i = threadIdx.x; i < tile.size(); i += THREADS, walk.next()) {
        const Place at = walk.place();
        const int h = resolve(row + at.row, (int)q.size[1], q.padding_mode);
        const int w = resolve(column + at.column, (int)q.size[2], q.padding_mode);
        // Past the padding, where only idle results look, no index stands for anything.
        const bool inside = d >= 0 && below(h, q.size[1]) && below(w, q.size[2]) && corner.group + at.channel < q.groups;
        staged[i] = inside ? load(p.x.data[p.x.offset(corner.n, corner.group + at.channel, c, d, h, w)]) : ACCUMULATOR{};
    }
}

using Sums = ACCUMULATOR[ROWS];

template <int TAPS>
__device__ inline void add_run(const ACCUMULATOR* from, int pitch, const STORAGE* weight, long long apart, Sums& sums) {
    ACCUMULATOR w[TAPS];
#pragma unroll
    for (int k = 0; k < TAPS; ++k) w[k] = load(weight[k * apart]);
#pragma unroll
    for (int i = 0; i < ROWS + TAPS - 1; ++i) {
        const ACCUMULATOR x = from[i * pitch];
#pragma unroll
        for (int k = 0; k < TAPS; ++k)
            if (i >= k && i - k < ROWS) sums[i - k] = multiply_add(w[k], x, sums[i - k]);
    }
}

// Add the products of one channel and one kd. `from` and `weight` are those of tap (0, 0).
__device__ inline void add_taps(const Geometry& q, const ACCUMULATOR* from, int row_pitch, int column_pitch,
                                const STORAGE* weight, Sums& sums) {
    const int height = (int)q.kernel[1], width = (int)q.kernel[2];
    const int stride = (int)q.stride[1], dilation = (int)q.dilation[1];
    const int apart = stride % dilation ? height : stride / dilation;
    const long long channels = q.groups * q.out_channels;
    for (int kw = 0; kw < width; ++kw) {
        const ACCUMULATOR* column = from + kw * (int)q.dilation[2] * column_pitch;
        const STORAGE* taps = weight + (long long)kw * height * channels;
        for (int first = 0; first < apart && first < height; ++first)
            for (int k = first; k < height; k += RUN * apart) {
                const ACCUMULATOR* x = column + k * dilation * row_pitch;
                const STORAGE* w = taps + k * channels;
                switch ((height - k + apart - 1) / apart) {
                    case 1: add_run<1>(x, stride * row_pitch, w, apart * channels, sums); break;
                    case 2: add_run<2>(x, stride * row_pitch, w, apart * channels, sums); break;
                    case 3: add_run<3>(x, stride * row_pitch, w, apart * channels, sums); break;
                    default: add_run<RUN>(x, stride * row_pitch, w, apart * channels, sums);
                }
            }
    }
}

__device__ inline void write(const Depthwise& p, const Corner& corner, const Layout& tile, const ACCUMULATOR* sums) {
    const Geometry& q = p.geometry;
    const int outs = (int)q.out_channels;
    Walk walk(tile);
    for (int i = threadIdx.x; i < tile.size(); i += THREADS, walk.next()) {
        const Place at = walk.place();
        const int g = corner.group + at.channel / outs, o = at.channel % outs;
        const int h = corner.row + at.row, w = corner.column + at.column;
        if (g < q.groups && h < q.count[1] && w < q.count[2])
            finish(p.epilogue, sums[i], (long long)g * outs + o,
                   p.epilogue.residual.offset(corner.n, g, o, corner.depth, h, w),
                   p.y.data[p.y.offset(corner.n, g, o, corner.depth, h, w)]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) depthwise(const Depthwise p) {
    __shared__ ACCUMULATOR staged[STAGED];
    const Geometry& q = p.geometry;
    const Order order = (Order)p.order;
    const int outs = (int)q.out_channels, slots = (int)p.slots, strips = (int)p.strips, columns = (int)p.columns;
    const int height = (int)((strips * ROWS - 1) * q.stride[1] + (q.kernel[1] - 1) * q.dilation[1] + 1);
    const int width = (int)((columns - 1) * q.stride[2] + (q.kernel[2] - 1) * q.dilation[2] + 1);
    const Layout input = {order, slots, height, width}, results = {order, slots * outs, strips * ROWS, columns};
    const Layout items = {order, slots * outs, strips, columns};
    const Corner corner = corner_of(p);
    const Place item = Walk(items).place();
    const int slot = item.channel / outs;
    const bool busy = (int)threadIdx.x < items.size() && corner.group + slot < q.groups;

    const long long channels = q.groups * outs, taps = q.kernel[1] * q.kernel[2];
    const STORAGE* weight = p.weight + (long long)corner.group * outs + item.channel;
    const int from = input.at(slot, (int)(item.row * ROWS * q.stride[1]), (int)(item.column * q.stride[2]));
    const int row_pitch = input.at(0, 1, 0), column_pitch = input.at(0, 0, 1);
    Sums sums{};
    for (int c = 0; c < q.in_channels && taps; ++c)
        for (int kd = 0; kd < q.kernel[0]; ++kd) {
            __syncthreads();  // what was staged before has been read
            stage(p, corner, c, kd, input, staged);
            __syncthreads();
            if (busy) add_taps(q, staged + from, row_pitch, column_pitch, weight, sums);
            weight += taps * channels;
        }
    __syncthreads();
    if (busy)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) staged[results.at(item.channel, item.row * ROWS + r, item.column)] = sums[r];
    __syncthreads();
    write(p, corner, results, staged);
}
