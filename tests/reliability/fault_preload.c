/* Faults at the border to the kernel, preloaded into a training: what it asks of the disk and of the clock goes through here.
 *
 * Every operation that changes something below FAULT_UNDER has a number, counted from 1 in the order in which the process
 * makes them, whoever makes them (Python, Rust, C++). FAULT_LOG gets one line an operation: number, name, bytes, path.
 *
 * FAULT_AT=n with FAULT_HOW one of
 *   kill      SIGKILL in place of operation n
 *   torn      operation n, a write, puts down half of its bytes, then SIGKILL
 *   after     operation n is made, then SIGKILL
 *   stop      operation n is made, then SIGSTOP
 *   disk-full from operation n on nothing can be written or created (ENOSPC)
 *   read-only from operation n on nothing can be changed at all (EROFS)
 *   broken    operation n alone fails (EIO)
 * FAULT_CLOCK=x: the wall clock runs x times as fast as it should; below 0 it runs backwards.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONE, KILL, TORN, AFTER, STOP, DISK_FULL, READ_ONLY, BROKEN };
enum { PASS, HALF, THEN_KILL, THEN_STOP, FAIL };

static char under[PATH_MAX];
static size_t under_length;
static long at;
static int how, log_fd = -1;
static atomic_long number;
static double clock_rate = 1.0;
static struct timespec clock_start;

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

__attribute__((constructor)) static void read_settings(void)
{
    const char *where = getenv("FAULT_UNDER"), *log = getenv("FAULT_LOG"), *kind = getenv("FAULT_HOW");
    const char *names[] = {"", "kill", "torn", "after", "stop", "disk-full", "read-only", "broken"};
    if (where) {
        strncpy(under, where, sizeof under - 1);
        under_length = strlen(under);
    }
    if (getenv("FAULT_AT")) at = atol(getenv("FAULT_AT"));
    for (int i = 1; kind && i <= BROKEN; i++)
        if (!strcmp(kind, names[i])) how = i;
    if (log && under_length) log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (getenv("FAULT_CLOCK")) {
        clock_rate = atof(getenv("FAULT_CLOCK"));
        syscall(SYS_clock_gettime, CLOCK_REALTIME, &clock_start);
    }
}

static int is_watched(const char *path) { return under_length && !strncmp(path, under, under_length); }

static void path_of(int folder, const char *name, char *out)
{
    char base[PATH_MAX] = "";
    if (name && name[0] == '/') { snprintf(out, PATH_MAX, "%s", name); return; }
    if (folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; }
    else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, sizeof base - 1);
        base[length < 0 ? 0 : length] = 0;
    }
    if (name) snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, name);
    else snprintf(out, PATH_MAX, "%s", base);
}

/* Count the operation and say what is to become of it. `grows`: it needs room on the disk. */
static int decide(const char *what, int folder, const char *name, size_t bytes, int grows)
{
    char path[PATH_MAX];
    if (!under_length) return PASS;
    int saved = errno;
    path_of(folder, name, path);
    errno = saved;
    if (!is_watched(path)) return PASS;
    long mine = atomic_fetch_add(&number, 1) + 1;
    if (log_fd >= 0) {
        char line[PATH_MAX + 80];
        int length = snprintf(line, sizeof line, "%ld %s %zu %s\n", mine, what, bytes, path);
        if (syscall(SYS_write, log_fd, line, length) < 0) { /* the count matters, not the log */ }
        errno = saved;
    }
    if (!at || mine < at) return PASS;
    if (mine == at) {
        if (how == KILL) die();
        if (how == TORN) { if (bytes < 2 || strncmp(what, "write", 5)) die(); return HALF; }
        if (how == AFTER) return THEN_KILL;
        if (how == STOP) return THEN_STOP;
        if (how == BROKEN) { errno = EIO; return FAIL; }
    }
    if (how == DISK_FULL && grows) { errno = ENOSPC; return FAIL; }
    if (how == READ_ONLY) { errno = EROFS; return FAIL; }
    return PASS;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define MAKE(call) do { \
    __typeof__(call) result = (call); \
    if (verdict == THEN_KILL) { die(); } \
    if (verdict == THEN_STOP) { kill(getpid(), SIGSTOP); } \
    return result; \
} while (0)

ssize_t write(int fd, const void *data, size_t bytes)
{
    REAL(write);
    int verdict = decide("write", fd, NULL, bytes, 1);
    if (verdict == FAIL) return -1;
    if (verdict == HALF) { if (real(fd, data, bytes / 2) < 0) {} die(); }
    MAKE(real(fd, data, bytes));
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(writev);
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    int verdict = decide("writev", fd, NULL, bytes, 1);
    if (verdict == FAIL) return -1;
    if (verdict == HALF) { if (real(fd, parts, count / 2) < 0) {} die(); }
    MAKE(real(fd, parts, count));
}

static ssize_t write_at(const char *what, ssize_t (*real)(int, const void *, size_t, off_t), int fd, const void *data,
                        size_t bytes, off_t offset)
{
    int verdict = decide(what, fd, NULL, bytes, 1);
    if (verdict == FAIL) return -1;
    if (verdict == HALF) { if (real(fd, data, bytes / 2, offset) < 0) {} die(); }
    MAKE(real(fd, data, bytes, offset));
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    REAL(pwrite);
    return write_at("write at", real, fd, data, bytes, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t offset)
{
    REAL(pwrite64);
    return write_at("write at", real, fd, data, bytes, offset);
}

static int open_any(int (*real)(int, const char *, int, ...), int folder, const char *name, int flags, mode_t mode)
{
    int verdict = PASS;
    if ((flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC))
        verdict = decide("open", folder, name, 0, flags & O_CREAT);
    if (verdict == FAIL) return -1;
    MAKE(real(folder, name, flags, mode));
}

#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); }
int openat(int folder, const char *name, int flags, ...) { MODE REAL(openat); return open_any(real, folder, name, flags, mode); }
int openat64(int folder, const char *name, int flags, ...) { MODE REAL(openat64); return open_any(real, folder, name, flags, mode); }
int open(const char *name, int flags, ...) { MODE REAL(openat); return open_any(real, AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE REAL(openat64); return open_any(real, AT_FDCWD, name, flags, mode); }

#define CHANGE(signature, name, folder, path, grows, ...) \
    int signature { \
        REAL(name); \
        int verdict = decide(#name, folder, path, 0, grows); \
        if (verdict == FAIL) { return -1; } \
        MAKE(real(__VA_ARGS__)); \
    }

CHANGE(rename(const char *from, const char *to), rename, AT_FDCWD, to, 0, from, to)
CHANGE(renameat(int a, const char *from, int b, const char *to), renameat, b, to, 0, a, from, b, to)
CHANGE(unlink(const char *path), unlink, AT_FDCWD, path, 0, path)
CHANGE(unlinkat(int folder, const char *path, int flags), unlinkat, folder, path, 0, folder, path, flags)
CHANGE(rmdir(const char *path), rmdir, AT_FDCWD, path, 0, path)
CHANGE(mkdir(const char *path, mode_t mode), mkdir, AT_FDCWD, path, 1, path, mode)
CHANGE(mkdirat(int folder, const char *path, mode_t mode), mkdirat, folder, path, 1, folder, path, mode)
CHANGE(ftruncate(int fd, off_t size), ftruncate, fd, NULL, 0, fd, size)
CHANGE(ftruncate64(int fd, off64_t size), ftruncate64, fd, NULL, 0, fd, size)
CHANGE(truncate(const char *path, off_t size), truncate, AT_FDCWD, path, 0, path, size)
CHANGE(fsync(int fd), fsync, fd, NULL, 0, fd)
CHANGE(fdatasync(int fd), fdatasync, fd, NULL, 0, fd)

static void turn(struct timespec *now)
{
    double passed = (now->tv_sec - clock_start.tv_sec) + 1e-9 * (now->tv_nsec - clock_start.tv_nsec);
    double shown = clock_start.tv_sec + 1e-9 * clock_start.tv_nsec + clock_rate * passed;
    now->tv_sec = (time_t)shown;
    now->tv_nsec = (long)(1e9 * (shown - now->tv_sec));
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    REAL(clock_gettime);
    int result = real(id, now);
    if (!result && clock_rate != 1.0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) turn(now);
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec fine;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &fine)) return -1;
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec fine;
    if (clock_gettime(CLOCK_REALTIME, &fine)) return -1;
    if (out) *out = fine.tv_sec;
    return fine.tv_sec;
}
