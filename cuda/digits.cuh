// Numbers of mixed radix: which element of a tile, which product of a sum.
#pragma once

// N digits, the first one fastest; the last one has no radix and grows as it must.
template <int N, class T>
struct Digits {
    T digit[N];
};

// Take the last digit off a number.
template <class T>
__device__ inline T take(T& number, T radix) {
    const T digit = number % radix;
    number /= radix;
    return digit;
}

template <int N, class T>
__device__ inline Digits<N, T> digits_of(T number, const T (&radix)[N - 1]) {
    Digits<N, T> d;
#pragma unroll
    for (int i = 0; i < N - 1; ++i) d.digit[i] = take(number, radix[i]);
    d.digit[N - 1] = number;
    return d;
}

// Add, digit by digit: no division.
template <int N, class T>
__device__ inline void advance(Digits<N, T>& d, const Digits<N, T>& step, const T (&radix)[N - 1]) {
    T carry = 0;
#pragma unroll
    for (int i = 0; i < N - 1; ++i) {
        d.digit[i] += step.digit[i] + carry;
        carry = d.digit[i] >= radix[i];
        if (carry) d.digit[i] -= radix[i];
    }
    d.digit[N - 1] += step.digit[N - 1] + carry;
}
