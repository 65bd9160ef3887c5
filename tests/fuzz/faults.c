// System calls below one folder, counted; the one whose turn it is fails. For tests/fuzz/kills.py and failing_calls.py.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[4096], failed[64];
static int turn, count, number;

// Every call from here on is counted; call `when` fails with `error`, or none where it is 0, or
// ends the process where `error` is -1.
void faults_begin(const char *folder, int when, int error) {
  snprintf(below, sizeof below, "%s", folder);
  count = 0, turn = when, number = error;
}
int faults_counted(void) { return count; }
const char *faults_failed(void) { return failed; }

static int fails(const char *path, const char *name) {
  if (!below[0] || strncmp(path, below, strlen(below))) return 0;
  if (__atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST) != turn) return 0;
  snprintf(failed, sizeof failed, "%s", name);
  if (number < 0) kill(getpid(), SIGKILL);
  errno = number;
  return 1;
}
static int fails_of(int fd, const char *name) {
  char link[64], path[4096];
  if (!below[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return fails(path, name);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define BY_FD(type, name, given, passed) \
  type name given { return fails_of(fd, #name) ? -1 : REAL(name) passed; }
#define BY_PATH(name, given, passed) \
  int name given { return fails(path, #name) ? -1 : REAL(name) passed; }
#define OPENS(name) \
  int name(const char *path, int flags, ...) { \
    va_list more; \
    va_start(more, flags); \
    int mode = va_arg(more, int); \
    va_end(more); \
    if ((flags & O_CREAT) && fails(path, #name)) return -1; \
    return REAL(name)(path, flags, mode); \
  }

BY_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
BY_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
BY_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
BY_FD(ssize_t, writev, (int fd, const struct iovec *data, int size), (fd, data, size))
BY_FD(ssize_t, sendfile, (int fd, int from, off_t *at, size_t size), (fd, from, at, size))
BY_FD(int, fsync, (int fd), (fd))
BY_FD(int, fdatasync, (int fd), (fd))
BY_FD(int, ftruncate, (int fd, off_t size), (fd, size))
BY_PATH(rename, (const char *path, const char *to), (path, to))
BY_PATH(link, (const char *path, const char *to), (path, to))
BY_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
BY_PATH(unlink, (const char *path), (path))
BY_PATH(rmdir, (const char *path), (path))
OPENS(open)
OPENS(open64)
int openat(int fd, const char *path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  int mode = va_arg(more, int);
  va_end(more);
  if ((flags & O_CREAT) && fails(path, "openat")) return -1;
  return REAL(openat)(fd, path, flags, mode);
}
int unlinkat(int fd, const char *path, int flags) {
  if (fd == AT_FDCWD ? fails(path, "unlinkat") : fails_of(fd, "unlinkat")) return -1;
  return REAL(unlinkat)(fd, path, flags);
}
int renameat(int from, const char *path, int to, const char *name) {
  return fails(path, "renameat") ? -1 : REAL(renameat)(from, path, to, name);
}
int mkdirat(int fd, const char *path, mode_t mode) {
  return fails(path, "mkdirat") ? -1 : REAL(mkdirat)(fd, path, mode);
}
