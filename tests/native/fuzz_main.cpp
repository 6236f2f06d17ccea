// A fuzzer without libFuzzer, for compilers that have none: ./a.out ROUNDS SEED feeds it random
// bytes, ./a.out - FILE... the files that a fuzzing run left behind.
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "fuzz_bytes.h"

int main(int argc, char** argv) {
    std::vector<std::uint8_t> bytes;
    if (argc > 1 && std::string(argv[1]) == "-") {
        for (int i = 2; i < argc; ++i) {
            std::ifstream file(argv[i], std::ios::binary);
            bytes.assign(std::istreambuf_iterator<char>(file), {});
            LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
        }
        return 0;
    }
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 1000;
    std::mt19937 random(argc > 2 ? std::atoi(argv[2]) : 0);
    for (int round = 0; round < rounds; ++round) {
        bytes.resize(random() % 1500);
        for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    return 0;
}
