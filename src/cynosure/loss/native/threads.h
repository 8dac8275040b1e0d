// The memory and the threads of one call. Nothing here throws: an exception in a thread would end the process.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

namespace {

// The scratch memory of a call: `shared` bytes for all threads and `each` bytes per thread, in whole cache lines. It is
// allocated before any thread starts, so that the caller learns if there is not enough.
class Scratch {
   public:
    Scratch(int64_t shared, int64_t each, int64_t n_threads) : first(lines(shared)), stride(lines(each)) {
        const bool too_many = __builtin_mul_overflow(stride, n_threads, &n_bytes) ||
                              __builtin_add_overflow(n_bytes, first, &n_bytes);
        if (too_many) n_bytes = std::numeric_limits<int64_t>::max();
        if (n_bytes > 0 && !too_many) data.reset((char*)std::aligned_alloc(LINE, n_bytes));
    }

    // The bytes that could not be allocated, or 0.
    int64_t missing() const { return data ? 0 : n_bytes; }
    template <class T>
    T* shared() const {
        return (T*)data.get();
    }
    template <class T>
    T* of(int64_t thread) const {
        return (T*)(data.get() + first + thread * stride);
    }

   private:
    static constexpr int64_t LINE = 64;
    static int64_t lines(int64_t n_bytes) { return (n_bytes + LINE - 1) / LINE * LINE; }

    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    int64_t first, stride, n_bytes = 0;
    std::unique_ptr<char, Free> data;
};

// Calls work(i) for every i < n_threads, each in a new thread. If no more threads can start, this thread does the rest.
// Every call joins its threads, so that a later fork is safe.
template <class Work>
void in_threads(int64_t n_threads, const Work& work) {
    std::vector<std::thread> threads;
    try {
        threads.reserve(std::max<int64_t>(n_threads - 1, 0));
        for (int64_t i = 1; i < n_threads; i++) threads.emplace_back([&work, i] { work(i); });
    } catch (const std::exception&) {  // no memory for more threads, or the system's limit is reached
    }
    work(0);
    for (int64_t i = threads.size() + 1; i < n_threads; i++) work(i);
    for (auto& thread : threads) thread.join();
}

}  // namespace
