// For LD_PRELOAD: lets chosen allocations and threads fail while one function runs, and counts them.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_memalign(size_t, size_t);

static int armed, all_later;
static int64_t first_failing, n_requests;

static int fails(void) {
    if (!__atomic_load_n(&armed, __ATOMIC_SEQ_CST)) return 0;
    const int64_t i = __atomic_add_fetch(&n_requests, 1, __ATOMIC_SEQ_CST);
    return i == first_failing || (all_later && i > first_failing);
}

static void *none(void) {
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t n) { return fails() ? none() : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return fails() ? none() : __libc_calloc(n, size); }
void *aligned_alloc(size_t alignment, size_t n) { return fails() ? none() : __libc_memalign(alignment, n); }

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    typedef int (*Create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    return fails() ? EAGAIN : ((Create)dlsym(RTLD_NEXT, "pthread_create"))(thread, attributes, start, argument);
}

// function(arguments), in which request `first` fails, and with `later` all after it. `n` becomes how many there were.
int64_t run_failing(int64_t (*function)(const void *), const void *arguments, int64_t first, int later, int64_t *n) {
    first_failing = first, all_later = later, n_requests = 0;
    __atomic_store_n(&armed, 1, __ATOMIC_SEQ_CST);
    const int64_t result = function(arguments);
    __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST);
    *n = n_requests;
    return result;
}
