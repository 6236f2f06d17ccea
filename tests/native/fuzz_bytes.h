// What the fuzzers share: a fuzzer's bytes taken apart, and the end of a run that found something.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

// Numbers from the bytes, one after the other; zeros where none are left.
class Bytes {
  public:
    Bytes(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

    template <class Number>
    Number take() {
        std::uint8_t raw[sizeof(Number)] = {};
        for (std::uint8_t& byte : raw)
            if (at_ != end_) byte = *at_++;
        Number number;
        std::memcpy(&number, raw, sizeof number);
        return number;
    }

    // From low to high, both included.
    int within(int low, int high) {
        const int span = high - low + 1;
        return low + (span <= 256 ? take<std::uint8_t>() : take<std::uint16_t>()) % span;
    }

  private:
    const std::uint8_t *at_, *end_;
};

// Ends the run where the kernel did not do what its header promises.
inline void expect(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "broken promise: %s\n", what);
    std::abort();
}
