/* A disk that fails: preloaded, it makes one system call on files below a folder fail.
 *
 * A kind of call is counted from 1. The call whose number was planned returns an error, and so do
 * all later ones if the disk is to stay broken. Nothing else changes. Built by failing.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LONGEST = 2 * PATH_MAX };

static struct {
  char folder[PATH_MAX];
  char kind[16];
  int number; /* 0: nothing fails, calls are counted only */
  int error;
  int lasts;
  int seen;
  char first[LONGEST]; /* the path of the first call that failed */
} plan;

void plan_failure(const char *folder, const char *kind, int number, int error, int lasts) {
  memset(&plan, 0, sizeof plan);
  strncpy(plan.kind, kind, sizeof plan.kind - 1);
  plan.number = number;
  plan.error = error;
  plan.lasts = lasts;
  strncpy(plan.folder, folder, sizeof plan.folder - 1); /* last: from now on it counts */
}

void end_plan(void) { plan.folder[0] = 0; }
int calls_seen(void) { return plan.seen; }
const char *first_failure(void) { return plan.first; }

static int must_fail(const char *kind, const char *path) {
  size_t length = strlen(plan.folder);
  if (!length || strcmp(kind, plan.kind) || strncmp(path, plan.folder, length)) return 0;
  if (path[length] && path[length] != '/') return 0;
  plan.seen++;
  int fails = plan.number && (plan.lasts ? plan.seen >= plan.number : plan.seen == plan.number);
  if (fails) {
    if (!plan.first[0]) snprintf(plan.first, sizeof plan.first, "%s", path);
    errno = plan.error;
  }
  return fails;
}

static int of_file(const char *kind, int file) {
  char link[64], path[LONGEST];
  if (!plan.folder[0] || file <= 2) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return must_fail(kind, path);
}

static int of_path(const char *kind, int folder, const char *name) {
  char link[64], path[LONGEST];
  if (!plan.folder[0] || !name) return 0;
  if (name[0] == '/') return must_fail(kind, name);
  if (folder == AT_FDCWD)
    snprintf(link, sizeof link, "/proc/self/cwd");
  else
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
  if (length <= 0) return 0;
  snprintf(path + length, sizeof path - length, "/%s", name);
  return must_fail(kind, path);
}

/* ---- calls by path */

static int open_file(int folder, const char *name, int flags, mode_t mode) {
  const char *kind = (flags & O_ACCMODE) == O_RDONLY ? "open to read" : "open";
  if (of_path(kind, folder, name)) return -1;
  return syscall(SYS_openat, folder, name, flags, mode);
}

#define MODE_OF(flags)                       \
  mode_t mode = 0;                           \
  if ((flags) & (O_CREAT | O_TMPFILE)) {     \
    va_list rest;                            \
    va_start(rest, flags);                   \
    mode = va_arg(rest, mode_t);             \
    va_end(rest);                            \
  }

int open(const char *name, int flags, ...) { MODE_OF(flags) return open_file(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE_OF(flags) return open_file(AT_FDCWD, name, flags, mode); }
int openat(int folder, const char *name, int flags, ...) { MODE_OF(flags) return open_file(folder, name, flags, mode); }
int openat64(int folder, const char *name, int flags, ...) { MODE_OF(flags) return open_file(folder, name, flags, mode); }

int rename(const char *old, const char *new) {
  if (of_path("rename", AT_FDCWD, new)) return -1;
  return syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
}

int mkdirat(int folder, const char *name, mode_t mode) {
  if (of_path("mkdir", folder, name)) return -1;
  return syscall(SYS_mkdirat, folder, name, mode);
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int unlinkat(int folder, const char *name, int flags) {
  if (of_path("unlink", folder, name)) return -1;
  return syscall(SYS_unlinkat, folder, name, flags);
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

/* ---- calls by open file */

ssize_t write(int file, const void *bytes, size_t count) {
  if (of_file("write", file)) return -1;
  if (of_file("tear", file)) { /* half of it is written, then the disk fails */
    int error = errno;
    if (count > 1) syscall(SYS_write, file, bytes, count / 2);
    errno = error;
    return -1;
  }
  return syscall(SYS_write, file, bytes, count);
}

ssize_t read(int file, void *bytes, size_t count) {
  if (of_file("read", file)) return -1;
  return syscall(SYS_read, file, bytes, count);
}

int fsync(int file) {
  if (of_file("fsync", file)) return -1;
  return syscall(SYS_fsync, file);
}

int ftruncate64(int file, off64_t length) {
  if (of_file("truncate", file)) return -1;
  return syscall(SYS_ftruncate, file, length);
}
int ftruncate(int file, off_t length) { return ftruncate64(file, length); }

off64_t lseek64(int file, off64_t offset, int from) {
  if (of_file("lseek", file)) return -1;
  return syscall(SYS_lseek, file, offset, from);
}
off_t lseek(int file, off_t offset, int from) { return lseek64(file, offset, from); }

int close(int file) {
  int fails = of_file("close", file);
  int answer = syscall(SYS_close, file); /* it is closed all the same, as on Linux */
  if (fails) errno = plan.error;
  return fails ? -1 : answer;
}

/* The lock. Python's lockf calls this. */
static int control(int file, int command, void *argument) {
  if ((command == F_SETLK || command == F_SETLKW) && of_file("lock", file)) return -1;
  return syscall(SYS_fcntl, file, command, argument);
}
int fcntl(int file, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  return control(file, command, argument);
}
int fcntl64(int file, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  return control(file, command, argument);
}

/* ---- looking */

int fstatat(int folder, const char *name, struct stat *found, int flags) {
  int fails = name[0] ? of_path("stat", folder, name) : of_file("stat", folder);
  return fails ? -1 : syscall(SYS_newfstatat, folder, name, found, flags);
}
int fstatat64(int folder, const char *name, struct stat64 *found, int flags) {
  return fstatat(folder, name, (struct stat *)found, flags);
}
int stat(const char *name, struct stat *found) { return fstatat(AT_FDCWD, name, found, 0); }
int stat64(const char *name, struct stat64 *found) { return fstatat64(AT_FDCWD, name, found, 0); }
int lstat(const char *name, struct stat *found) { return fstatat(AT_FDCWD, name, found, AT_SYMLINK_NOFOLLOW); }
int lstat64(const char *name, struct stat64 *found) { return fstatat64(AT_FDCWD, name, found, AT_SYMLINK_NOFOLLOW); }
int fstat(int file, struct stat *found) { return fstatat(file, "", found, AT_EMPTY_PATH); }
int fstat64(int file, struct stat64 *found) { return fstatat64(file, "", found, AT_EMPTY_PATH); }
