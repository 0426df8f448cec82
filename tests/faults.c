/* Fails one operation on files below a folder, or sends its own process a signal before it: LD_PRELOAD for tests/faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static int at = -1, what = 0, count = 0;

/* Operation number `number`, from 1 on, fails with errno `kind`, or gets signal -`kind`. Returns how many there were. */
int fault_arm(const char *folder, int number, int kind) {
    int before = count;
    strncpy(below, folder, sizeof below - 1);
    at = number, what = kind, count = 0;
    return before;
}

static int due(const char *path) {
    if (!below[0] || strncmp(path, below, strlen(below)) || ++count != at) return 0;
    if (what < 0) {
        raise(-what);
        return 0;
    }
    errno = what;
    return 1;
}

static int due_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return due(path);
}

static int due_at(int dir, const char *path) { return dir == AT_FDCWD || path[0] == '/' ? due(path) : due_fd(dir); }

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define WRITES (O_WRONLY | O_RDWR | O_CREAT)
#define OPEN(name)                                                                     \
    int name(const char *path, int flags, ...) {                                       \
        REAL(name);                                                                    \
        va_list more;                                                                  \
        va_start(more, flags);                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;      \
        va_end(more);                                                                  \
        return flags & WRITES && due(path) ? -1 : real(path, flags, mode);             \
    }
#define OPENAT(name)                                                                   \
    int name(int dir, const char *path, int flags, ...) {                              \
        REAL(name);                                                                    \
        va_list more;                                                                  \
        va_start(more, flags);                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;      \
        va_end(more);                                                                  \
        return flags & WRITES && due_at(dir, path) ? -1 : real(dir, path, flags, mode); \
    }
#define ON_FD(type, name, fd, declared, ...) type name declared { REAL(name); return due_fd(fd) ? -1 : real(__VA_ARGS__); }
#define ON_PATH(name, path, declared, ...) int name declared { REAL(name); return due(path) ? -1 : real(__VA_ARGS__); }
#define ON_AT(name, dir, path, declared, ...) int name declared { REAL(name); return due_at(dir, path) ? -1 : real(__VA_ARGS__); }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
ON_FD(ssize_t, write, fd, (int fd, const void *data, size_t size), fd, data, size)
ON_FD(ssize_t, writev, fd, (int fd, const struct iovec *data, int size), fd, data, size)
ON_FD(ssize_t, pwrite64, fd, (int fd, const void *data, size_t size, off64_t place), fd, data, size, place)
ON_FD(int, fsync, fd, (int fd), fd)
ON_FD(int, fdatasync, fd, (int fd), fd)
ON_FD(int, ftruncate64, fd, (int fd, off64_t size), fd, size)
ON_FD(ssize_t, sendfile64, to, (int to, int from, off64_t *place, size_t size), to, from, place, size)
ON_FD(ssize_t, copy_file_range, to, (int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags), from, a, to, b, size, flags)
ON_PATH(rename, to, (const char *from, const char *to), from, to)
ON_PATH(link, to, (const char *from, const char *to), from, to)
ON_PATH(unlink, path, (const char *path), path)
ON_PATH(mkdir, path, (const char *path, mode_t mode), path, mode)
ON_PATH(rmdir, path, (const char *path), path)
ON_AT(renameat, to_dir, to, (int from_dir, const char *from, int to_dir, const char *to), from_dir, from, to_dir, to)
ON_AT(linkat, to_dir, to, (int from_dir, const char *from, int to_dir, const char *to, int flags), from_dir, from, to_dir, to, flags)
ON_AT(unlinkat, dir, path, (int dir, const char *path, int flags), dir, path, flags)
ON_AT(mkdirat, dir, path, (int dir, const char *path, mode_t mode), dir, path, mode)
