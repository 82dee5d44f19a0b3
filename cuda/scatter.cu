// The gradient of max pooling: each number is added to the element of its image that an index names.
//
// Windows overlap, so several numbers may meet in one element, and atomic additions would sum them in whatever order
// they come. Here a warp has an image's channel to itself and goes through its numbers in order, 32 at a time; those
// of the 32 that meet are first summed, in order, by the first of them. So the same numbers give the same bits.
#include "types.cuh"

struct Scatter {
    const STORAGE* numbers;     // (images, length, channels)
    const long long* indices;   // as many, each of an element of its image
    ACCUMULATOR* result;        // (images, elements, channels), zero so far
    long long images, length, elements, channels;
};

extern "C" __global__ void __launch_bounds__(256) scatter(const Scatter p) {
    constexpr int WARP = 32;
    const int lane = threadIdx.x % WARP;
    const long long warps = (long long)gridDim.x * blockDim.x / WARP;
    const long long warp = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    for (long long line = warp; line < p.images * p.channels; line += warps) {
        const long long image = line / p.channels, channel = line % p.channels;
        ACCUMULATOR* result = p.result + image * p.elements * p.channels + channel;
        for (long long first = 0; first < p.length; first += WARP) {
            const bool any = first + lane < p.length;
            const long long at = (image * p.length + first + lane) * p.channels + channel;
            const long long mine = any ? p.indices[at] : -1;
            const ACCUMULATOR number = any ? load(p.numbers[at]) : ACCUMULATOR{};
            ACCUMULATOR sum{};
            bool leads = mine >= 0 && mine < p.elements;
            for (int from = 0; from < WARP; ++from) {
                const bool meet = __shfl_sync(0xffffffff, mine, from) == mine;
                const ACCUMULATOR other = __shfl_sync(0xffffffff, number, from);
                if (!meet) continue;
                sum = add(sum, other);
                leads = leads && from >= lane;
            }
            if (leads) result[mine * p.channels] = add(result[mine * p.channels], sum);
            __syncwarp();  // the next 32 may meet in the same element
        }
    }
}
