/* A server's wall clock, as the test wants it: preloaded into redis-server, which reads its time by these two functions. What is
   to be shown is in the file that REDISLOCK_CLOCK names: from a moment that outlives the server it runs at a rate of its own, too fast
   and too slow by turns, so that it is never far off; and it is stepped by whoever writes the file. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct clock {
    volatile int64_t step_ns; /* written by another process */
    int64_t start_ns;         /* when it was right */
    double rate;              /* by which it is too fast then */
};

static const struct clock* shown;
static int (*real_clock_gettime)(clockid_t, struct timespec*);

__attribute__((constructor)) static void load(void) {
    real_clock_gettime = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
    const char* path = getenv("REDISLOCK_CLOCK");
    const int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void* memory = mmap(NULL, sizeof *shown, PROT_READ, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED) shown = memory;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec* time) {
    if (real_clock_gettime == NULL) load();
    const int result = real_clock_gettime(clock, time);
    if (result != 0 || clock != CLOCK_REALTIME || shown == NULL) return result;
    const int64_t now = time->tv_sec * 1000000000LL + time->tv_nsec;
    const int64_t turn = 10000000000LL, phase = (now - shown->start_ns) % (2 * turn);
    const int64_t off = (int64_t)((double)(phase < turn ? phase : 2 * turn - phase) * shown->rate);
    const int64_t shows = now + off + shown->step_ns;
    time->tv_sec = shows / 1000000000LL;
    time->tv_nsec = shows % 1000000000LL;
    return 0;
}

int gettimeofday(struct timeval* restrict time, void* restrict zone) {
    (void)zone;
    struct timespec now;
    const int result = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return result;
}
