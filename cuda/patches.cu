// Patches as columns (im2col), and columns summed into the image that they are patches of (col2im).
#include "digits.cuh"
#include "patches.cuh"

extern "C" __global__ void __launch_bounds__(256) unfold_patches(const Pack<STORAGE> p) {
    pack(p, [](const STORAGE& v) { return v; });
}

struct Fold {
    const STORAGE* columns;  // (n, C, KD, KH, KW, TD, TH, TW)
    STORAGE* image;          // (n, C, D, H, W)
    Geometry geometry;
};

// The place along an axis at which tap `k` meets element `i`; -1 if there is none. Axes are shorter than 2^31.
__device__ inline int place(const Geometry& q, int axis, int i, int k) {
    const int from = i + (int)q.offset[axis] - k * (int)q.dilation[axis], stride = (int)q.stride[axis];
    const int at = from / stride;
    return from >= 0 && at * stride == from && at < q.count[axis] ? at : -1;
}

// A thread looks for the columns that hold its element of the image and adds them by rising tap. No two threads write to
// one element, and the same columns give the same bits.
extern "C" __global__ void __launch_bounds__(256) fold_patches(const Fold p) {
    const Geometry& q = p.geometry;
    const long long places = q.count[0] * q.count[1] * q.count[2];
    const long long taps = q.kernel[0] * q.kernel[1] * q.kernel[2];
    const long long total = q.batch * q.in_channels * q.size[0] * q.size[1] * q.size[2];
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        long long channel = i;  // through all images
        const int w = (int)take(channel, q.size[2]), h = (int)take(channel, q.size[1]), d = (int)take(channel, q.size[0]);
        const STORAGE* columns = p.columns + channel * taps * places;
        ACCUMULATOR sum{};
        for (int kd = 0; kd < q.kernel[0]; ++kd) {
            const int at_d = place(q, 0, d, kd);
            for (int kh = 0; kh < q.kernel[1]; ++kh) {
                const int at_h = place(q, 1, h, kh);
                const long long row = (at_d * q.count[1] + at_h) * q.count[2];
                for (int kw = 0; kw < q.kernel[2]; ++kw, columns += places) {
                    const int at_w = place(q, 2, w, kw);
                    if (at_d >= 0 && at_h >= 0 && at_w >= 0) sum = add(sum, load(columns[row + at_w]));
                }
            }
        }
        store(p.image[i], sum);
    }
}
