// Barriers in shared memory that count arrivals and bytes, and registers that pass between groups of warps.
//
// A barrier's phase ends when as many threads as it was made for have arrived and as many bytes as they announced have
// been copied; then the next one begins. Phases are told apart by parity: the first is 0, and whoever waits for the phase
// of a parity goes on once it has ended. Of a barrier that was just made, the phase of parity 1 counts as ended.
//
// Each wrapper holds PTX instructions (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier" and
// "Miscellaneous Instructions: setmaxnreg"); its twin in tests/emulation/hopper_operations.h does the same on the CPU.
#pragma once
#include "shared.cuh"

using Barrier = unsigned long long;

#ifdef __CUDACC__
__device__ inline void make_barrier(Barrier& barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// Show the barriers that this thread made to the copy engine; the block's threads still have to meet.
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive(Barrier& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// Arrive, and announce bytes that will be copied in this phase.
__device__ inline void arrive_expecting(Barrier& barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
}

__device__ inline void wait_for_phase(Barrier& barrier, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"  // sleeps for a while
        "@!ended bra again;\n"
        "}" ::"r"(shared_address(&barrier)),
        "r"(parity)
        : "memory");
}

// Leave each thread of this warpgroup, or raise it to, REGISTERS registers.
template <int REGISTERS>
__device__ inline void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
#endif
