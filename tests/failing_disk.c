/* A disk that fails now and then: LD_PRELOADed, it answers calls on files below some folders with an error, by chance.  tests/chaos.py compiles it.

   FAILING_BELOW   folders, with : between them; without it nothing fails.  It is looked at in every call, so a forked process may set it.
   FAILING_RATE    of calls that fail
   FAILING_SEED    of the chance; each process draws for itself
   FAILING_WITH    numbers of errors, with commas.  ENOSPC and EDQUOT come from what writes, all else from any call.
   FAILING_LOG     a file that gets a line for each: call, error, path
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static uint64_t state;
static pid_t owner;

static double chance(void) { /* splitmix64; a race between threads costs no more than a draw */
    if (owner != getpid()) {
        const char *seed = getenv("FAILING_SEED");
        const char *rank = getenv("RANK");
        owner = getpid();
        state = strtoull(seed ? seed : "0", NULL, 10) * 0x9E3779B97F4A7C15u + strtoull(rank ? rank : "0", NULL, 10) * 0xD1B54A32D192ED03u;
    }
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

static int is_below(const char *path) {
    const char *folders = getenv("FAILING_BELOW");
    while (folders && *folders) {
        size_t length = strcspn(folders, ":");
        if (length && !strncmp(path, folders, length) && (path[length] == '/' || !path[length])) return 1;
        folders += length + (folders[length] == ':');
    }
    return 0;
}

/* Whether this call fails; errno is set. */
static int fails_path(const char *call, const char *path, int writes) {
    const char *rate = getenv("FAILING_RATE"), *with = getenv("FAILING_WITH");
    if (!path || !rate || !with || !is_below(path) || chance() >= atof(rate)) return 0;
    int numbers[16], count = 0;
    for (const char *at = with; *at && count < 16; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ',')) {
        int number = atoi(at);
        if (writes || (number != ENOSPC && number != EDQUOT)) numbers[count++] = number;
    }
    if (!count) return 0;
    errno = numbers[(int)(chance() * count) % count];
    const char *log = getenv("FAILING_LOG");
    if (log) {
        int kept = errno;
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s\t%d\t%s\n", call, kept, path);
        long file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
        if (file >= 0) {
            syscall(SYS_write, file, line, (size_t)length);
            syscall(SYS_close, file);
        }
        errno = kept;
    }
    return 1;
}

static int fails_file(const char *call, int file, int writes) {
    char name[64], path[PATH_MAX];
    if (!getenv("FAILING_BELOW")) return 0;
    int kept = errno;
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t length = readlink(name, path, sizeof path - 1);
    errno = kept;
    if (length <= 0) return 0;
    path[length] = 0;
    return fails_path(call, path, writes);
}

#define REAL(kind, name, ...) \
    static kind (*real)(__VA_ARGS__); \
    if (!real) real = (kind(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        return fails_path("open", path, (flags & O_CREAT) != 0) ? -1 : real(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        return fails_path("openat", path, (flags & O_CREAT) != 0) ? -1 : real(folder, path, flags, mode); \
    }
#define STAT(name, type) \
    int name(const char *path, struct type *found) { \
        REAL(int, #name, const char *, struct type *); \
        return fails_path("stat", path, 0) ? -1 : real(path, found); \
    }
#define FSTATAT(name, type) \
    int name(int folder, const char *path, struct type *found, int flags) { \
        REAL(int, #name, int, const char *, struct type *, int); \
        return fails_path("stat", path, 0) ? -1 : real(folder, path, found, flags); \
    }
#define PREAD(name, offset_type) \
    ssize_t name(int file, void *bytes, size_t size, offset_type at) { \
        REAL(ssize_t, #name, int, void *, size_t, offset_type); \
        return fails_file("pread", file, 0) ? -1 : real(file, bytes, size, at); \
    }

OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
STAT(stat, stat) STAT(stat64, stat64) STAT(lstat, stat) STAT(lstat64, stat64)
FSTATAT(fstatat, stat) FSTATAT(fstatat64, stat64)
PREAD(pread, off_t) PREAD(pread64, off64_t)

ssize_t read(int file, void *bytes, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    return fails_file("read", file, 0) ? -1 : real(file, bytes, size);
}

ssize_t write(int file, const void *bytes, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return fails_file("write", file, 1) ? -1 : real(file, bytes, size);
}

int fsync(int file) {
    REAL(int, "fsync", int);
    return fails_file("fsync", file, 1) ? -1 : real(file);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return fails_path("rename", to, 1) ? -1 : real(from, to);
}
