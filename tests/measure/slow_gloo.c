/* Under LD_PRELOAD: a thread of gloo that has reported that a collective is done rests for 50 ms, as it does where the
   processor is busy, or until the process sets ENDS. It still holds the tensors then. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOTIFY "_ZNSt18condition_variable10notify_allEv"

void notify_all(void *condition) __asm__(NOTIFY);

void notify_all(void *condition) {
    static void (*own)(void *);
    if (!own) own = (void (*)(void *))dlsym(dlopen("libstdc++.so.6", RTLD_NOW), NOTIFY);
    own(condition);
    char name[16];
    pthread_getname_np(pthread_self(), name, sizeof name);
    for (int i = 0; i < 50 && !strcmp(name, "pt_gloo_runloop") && !getenv("ENDS"); i++) usleep(1000);
}
