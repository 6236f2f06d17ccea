// What the kernels share, batch norm's too: indices, vector code on every compiler, and threads.
#pragma once

#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

#if defined(_MSC_VER)
#define SIM3DR_INLINE __forceinline
#define SIM3DR_RESTRICT __restrict
#else
#define SIM3DR_INLINE inline __attribute__((always_inline))
#define SIM3DR_RESTRICT __restrict__
#endif

// A function compiled several times, for any x86-64, for AVX2 and for AVX-512; the loader takes what
// the processor has. Without fused multiply-add all compute the same. SIM3DR_AVX512, where it is
// defined, marks a function for AVX-512 alone: before a call ask __builtin_cpu_supports.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if __GNUC__ >= 12
#define SIM3DR_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#define SIM3DR_AVX512 __attribute__((target("arch=x86-64-v4")))
#else
#define SIM3DR_CLONES __attribute__((target_clones("avx2", "default")))
#endif
#else
#define SIM3DR_CLONES
#endif

// Before a short loop that is to become one vector operation, not as many scalar ones.
#if defined(__GNUC__) && !defined(__clang__)
#define SIM3DR_VECTORISE _Pragma("GCC unroll 1")
#else
#define SIM3DR_VECTORISE
#endif

namespace sim3dr {

using Index = std::ptrdiff_t;

// task(part) for each part from 0 to parts - 1, on as many threads where the system gives them.
// The task must not throw; what it needs is allocated before.
template <class Task>
void in_parallel(int parts, const Task& task) {
    std::vector<std::thread> helpers;
    helpers.reserve(parts - 1);
    try {
        for (int part = 1; part < parts; ++part)
            helpers.emplace_back([&task, part] { task(part); });
    } catch (const std::exception&) {
        // No more threads, or no memory for one: the calling thread does the rest.
    }
    task(0);
    for (int part = static_cast<int>(helpers.size()) + 1; part < parts; ++part) task(part);
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace sim3dr
