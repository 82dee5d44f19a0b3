// One sum by its definition, for kernels whose own way of summing spreads what is not finite to outputs that it is not in.
#pragma once
#include "geometry.cuh"
#include "types.cuh"

// Of `channels` channels, at one target. `image` and `filter` hold the first one, whatever the image, group and output.
__device__ inline ACCUMULATOR sum_products(const Geometry& q, const View<const STORAGE>& image,
                                           const View<const STORAGE>& filter, long long channels, long long d,
                                           long long h, long long w) {
    ACCUMULATOR sum{};
    for (long long c = 0; c < channels; ++c)
        for (long long kd = 0; kd < q.kernel[0]; ++kd)
            for (long long kh = 0; kh < q.kernel[1]; ++kh)
                for (long long kw = 0; kw < q.kernel[2]; ++kw) {
                    const long long at_d = source(q, 0, d, kd), at_h = source(q, 1, h, kh), at_w = source(q, 2, w, kw);
                    const bool inside = at_d >= 0 && at_h >= 0 && at_w >= 0;
                    const ACCUMULATOR x = inside ? load(image.data[image.offset(0, 0, c, at_d, at_h, at_w)]) : ACCUMULATOR{};
                    sum = multiply_add(x, load(filter.data[filter.offset(0, 0, c, kd, kh, kw)]), sum);
                }
    return sum;
}
