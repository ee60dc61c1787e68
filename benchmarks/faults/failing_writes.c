/* Makes the n-th writing system call on a file below a folder fail, as a full or broken disk would. Preloaded (LD_PRELOAD), so that
   it also reaches writers that are not Python's. Armed by faults_arm; without that it only passes calls on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char folder[4096];
static int error_number;
static long first, number_of; /* calls first .. first + number_of - 1 fail; number_of < 0: all from the first on */
#define MOST 4096
static struct { long calls; char names[MOST][16]; } *seen; /* shared with processes that are forked */

void faults_arm(const char *path, int error, long from, long count) {
  if (!seen) seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  seen->calls = 0;
  error_number = error, first = from, number_of = count;
  strncpy(folder, path, sizeof folder - 1);
}

void faults_disarm(void) { folder[0] = 0; }
long faults_calls(void) { return seen ? seen->calls : 0; }
const char *faults_name(long index) { return seen && index >= 0 && index < MOST ? seen->names[index] : "?"; }

static int fails(const char *path, const char *name) {
  if (!folder[0] || !path || strncmp(path, folder, strlen(folder))) return 0;
  long index = __atomic_fetch_add(&seen->calls, 1, __ATOMIC_SEQ_CST);
  if (index < MOST) strncpy(seen->names[index], name, sizeof seen->names[index] - 1);
  if (index < first || (number_of >= 0 && index >= first + number_of)) return 0;
  errno = error_number;
  return 1;
}

static int file_fails(int file, const char *name) {
  char link[64], path[4096];
  if (!folder[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(path, name);
}

static int at_fails(int at, const char *path, const char *name) {
  char link[64], whole[8192];
  if (!folder[0] || !path) return 0;
  if (path[0] == '/') return fails(path, name);
  if (at == AT_FDCWD) {
    if (!getcwd(whole, 4096)) return 0;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t length = readlink(link, whole, 4095);
    if (length < 0) return 0;
    whole[length] = 0;
  }
  strcat(whole, "/");
  strncat(whole, path, 4000);
  return fails(whole, name);
}

#define REAL(type, name, ...)                                      \
  static type (*real)(__VA_ARGS__);                                \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name);

#define OPEN(name)                                                                             \
  int name(const char *path, int flags, ...) {                                                 \
    REAL(int, name, const char *, int, ...)                                                    \
    va_list list;                                                                              \
    va_start(list, flags);                                                                     \
    mode_t mode = va_arg(list, mode_t);                                                        \
    va_end(list);                                                                              \
    if ((flags & O_CREAT) && at_fails(AT_FDCWD, path, "create")) return -1;                    \
    return real(path, flags, mode);                                                            \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                           \
  int name(int at, const char *path, int flags, ...) {                                         \
    REAL(int, name, int, const char *, int, ...)                                               \
    va_list list;                                                                              \
    va_start(list, flags);                                                                     \
    mode_t mode = va_arg(list, mode_t);                                                        \
    va_end(list);                                                                              \
    if ((flags & O_CREAT) && at_fails(at, path, "create")) return -1;                          \
    return real(at, path, flags, mode);                                                        \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size) {
  REAL(ssize_t, write, int, const void *, size_t)
  return file_fails(file, "write") ? -1 : real(file, data, size);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
  REAL(ssize_t, writev, int, const struct iovec *, int)
  return file_fails(file, "write") ? -1 : real(file, parts, count);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
  REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t)
  return file_fails(file, "write") ? -1 : real(file, data, size, at);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
  REAL(ssize_t, sendfile64, int, int, off64_t *, size_t)
  return file_fails(out, "write") ? -1 : real(out, in, at, size);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
  REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned)
  return file_fails(out, "write") ? -1 : real(in, from, out, to, size, flags);
}
int ftruncate64(int file, off64_t size) {
  REAL(int, ftruncate64, int, off64_t)
  return file_fails(file, "truncate") ? -1 : real(file, size);
}
int fsync(int file) {
  REAL(int, fsync, int)
  return file_fails(file, "fsync") ? -1 : real(file);
}
int fdatasync(int file) {
  REAL(int, fdatasync, int)
  return file_fails(file, "fsync") ? -1 : real(file);
}
int mkdir(const char *path, mode_t mode) {
  REAL(int, mkdir, const char *, mode_t)
  return at_fails(AT_FDCWD, path, "mkdir") ? -1 : real(path, mode);
}
int rename(const char *from, const char *to) {
  REAL(int, rename, const char *, const char *)
  return at_fails(AT_FDCWD, to, "rename") ? -1 : real(from, to);
}
int link(const char *from, const char *to) {
  REAL(int, link, const char *, const char *)
  return at_fails(AT_FDCWD, to, "link") ? -1 : real(from, to);
}
int symlink(const char *from, const char *to) {
  REAL(int, symlink, const char *, const char *)
  return at_fails(AT_FDCWD, to, "symlink") ? -1 : real(from, to);
}
