// Matrix products of a warpgroup, four warps, on Hopper's tensor cores: c += a b for a 64 x K matrix a and a K x N matrix
// b, both in shared memory, where K elements are 32 bytes and N is 64, 128 or 256.
//
// Rows of a, and columns of b, are rows of 128 bytes with the swizzle of cuda/tma.cuh; a product takes a quarter of each.
// Warp w has rows 16w..16w+15 of c. With lane = 4 * g + t, c[4j], c[4j+1] are row g, columns 8j + 2t and 8j + 2t + 1, and
// c[4j+2], c[4j+3] the same of row g + 8 (PTX ISA, "Asynchronous warpgroup level matrix instructions").
//
// Products are asynchronous: c must not be touched, nor the operands overwritten, until they have been waited for. Each
// wrapper holds one PTX instruction; its twin in tests/emulation/hopper_operations.h does the same on the CPU.
#pragma once
#include "tma.cuh"
#include "types.cuh"

// An operand as the cores are told of it, from its first row on, which must begin a pattern of the swizzle. In units of 16
// bytes: the address in bits 0..13; from a set of 8 rows to the next in bits 32..45; in bits 62 and 63 the swizzle, 1 for
// that of 128 bytes. The distance along k, bits 16..29, is not used for rows of one swizzle. Adding to it moves on:
__device__ inline unsigned long long operand(const void* rows) {
    constexpr unsigned long long swizzle = 1, eight_rows = 8 * SWIZZLED_ROW_BYTES / 16;
    return swizzle << 62 | eight_rows << 32 | 1ull << 16 | (shared_address(rows) & 0x3ffff) >> 4;
}

constexpr int NEXT_PRODUCT = 32 / 16;                      // along the rows
constexpr int NEXT_64_ROWS = 64 * SWIZZLED_ROW_BYTES / 16;  // to the next 64

#ifdef __CUDACC__
// Before the first product, and whenever registers of c were touched since the last one.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Make a group of the products begun since the last one.
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait for all groups of this warp but the LATER last ones.
template <int LATER>
__device__ inline void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATER) : "memory");
}

// c is complete: the compiler must not read it earlier.
__device__ inline void receive(float& c) { asm volatile("" : "+f"(c)::"memory"); }
__device__ inline void receive(int& c) { asm volatile("" : "+r"(c)::"memory"); }

#define REGISTERS_32                                                                                     \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64                                                                                                \
    REGISTERS_32                                                                                                    \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
    "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_128                                                                                                 \
    REGISTERS_64                                                                                                      \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "   \
    "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, "  \
    "%107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, " \
    "%126, %127"

#define SUMS_4(kind, c, i) kind(c[i]), kind(c[i + 1]), kind(c[i + 2]), kind(c[i + 3])
#define SUMS_16(kind, c, i) SUMS_4(kind, c, i), SUMS_4(kind, c, i + 4), SUMS_4(kind, c, i + 8), SUMS_4(kind, c, i + 12)
#define SUMS_32(kind, c, i) SUMS_16(kind, c, i), SUMS_16(kind, c, i + 16)
#define SUMS_64(kind, c, i) SUMS_32(kind, c, i), SUMS_32(kind, c, i + 32)
#define SUMS_128(kind, c, i) SUMS_64(kind, c, i), SUMS_64(kind, c, i + 64)

// a and b are the operands of the numbers A and B, behind the registers of c.
#define PRODUCT(name, sum, kind, types, options, columns, registers, A, B)                                  \
    __device__ inline void name(sum(&c)[registers], unsigned long long a, unsigned long long b) {            \
        asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                         \
                     "wgmma.mma_async.sync.aligned.m64n" #columns types " {" REGISTERS_##registers "}, %" #A \
                     ", %" #B ", add" options ";\n}"                                                        \
                     : SUMS_##registers(kind, c, 0)                                                         \
                     : "l"(a), "l"(b));                                                                     \
    }
#define PRODUCTS(name, sum, kind, types, options)                 \
    PRODUCT(name, sum, kind, types, options, 64, 32, 32, 33)      \
    PRODUCT(name, sum, kind, types, options, 128, 64, 64, 65)     \
    PRODUCT(name, sum, kind, types, options, 256, 128, 128, 129)

// Options: neither operand negated; of the 16-bit types, neither transposed.
PRODUCTS(wgmma_f16, float, "+f", "k16.f32.f16.f16", ", 1, 1, 0, 0")
PRODUCTS(wgmma_bf16, float, "+f", "k16.f32.bf16.bf16", ", 1, 1, 0, 0")
PRODUCTS(wgmma_tf32, float, "+f", "k8.f32.tf32.tf32", ", 1, 1")
PRODUCTS(wgmma_s8, int, "+r", "k32.s32.s8.s8", "")
#endif

template <int REGISTERS>
__device__ inline void multiply(float (&c)[REGISTERS], unsigned long long a, unsigned long long b, float16) {
    wgmma_f16(c, a, b);
}

template <int REGISTERS>
__device__ inline void multiply(float (&c)[REGISTERS], unsigned long long a, unsigned long long b, bfloat16) {
    wgmma_bf16(c, a, b);
}

template <int REGISTERS>
__device__ inline void multiply(float (&c)[REGISTERS], unsigned long long a, unsigned long long b, float32) {
    wgmma_tf32(c, a, b);  // of which the cores read 19 bits
}

template <int REGISTERS>
__device__ inline void multiply(int (&c)[REGISTERS], unsigned long long a, unsigned long long b, int8) {
    wgmma_s8(c, a, b);
}
