// A kernel with SELinux, as far as a daemon can tell: loaded in front of libc, it answers for the system calls that have
// to do with labels. Labels are real extended attributes, which a kernel without SELinux keeps and does nothing with.
//
// What is made takes the label of its folder, and what has no label of its own shows that of the nearest folder above
// that has one: so containerd, which this is not loaded into, seems to work under the same kernel. FAKE_SELINUX says how
// it behaves: "inherit", "refuse" (no label may be set) or "transition" (the policy labels what is made otherwise).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/xattr.h>
#include <unistd.h>

#define KEY "security.selinux"
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

typedef char Path[PATH_MAX * 2];

static int is(const char *behaviour) {
  const char *chosen = getenv("FAKE_SELINUX");
  return chosen && !strcmp(chosen, behaviour);
}

// The path of something in a folder, without descriptors in it.
static void resolve(int dir, const char *name, Path path) {
  Path link = "", folder = "";
  int fd = dir, skipped = 0;
  if (sscanf(name, "/proc/self/fd/%d%n", &fd, &skipped) == 1)
    name += skipped;
  else if (*name == '/' || dir == AT_FDCWD) {
    snprintf(path, sizeof(Path), "%s", name);
    return;
  }
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, folder, sizeof folder - 1);
  folder[length < 0 ? 0 : length] = 0;
  strcpy(path, folder);
  if (*name && *name != '/') strcat(path, "/");
  strncat(path, name, sizeof(Path) - strlen(path) - 1);
}

// The label that a path shows.
static ssize_t look(const char *start, void *value, size_t size) {
  Path path;
  snprintf(path, sizeof path, "%s", start);
  for (;;) {
    ssize_t length = REAL(lgetxattr)(path, KEY, value, size);
    char *slash = strrchr(path, '/');
    if (length >= 0 || errno != ENODATA || !slash) return length;
    *slash = 0;
  }
}

// Labels what was just made.
static void label(int dir, const char *name) {
  Path path;
  char value[1024];
  int error = errno;
  resolve(dir, name, path);
  ssize_t length = look(path, value, sizeof value);
  if (is("transition")) length = snprintf(value, sizeof value, "system_u:object_r:other_t:s0");
  if (length >= 0) REAL(lsetxattr)(path, KEY, value, (size_t)length, 0);
  errno = error;
}

static int made(int result, int dir, const char *name) {
  if (result >= 0) label(dir, name);
  return result;
}

static int exists(int dir, const char *name) {
  struct stat status;
  int error = errno, result = fstatat(dir, name, &status, AT_SYMLINK_NOFOLLOW);
  errno = error;
  return !result;
}

int access(const char *path, int mode) {
  return strcmp(path, "/sys/fs/selinux/enforce") ? REAL(access)(path, mode) : 0;
}

ssize_t lgetxattr(const char *name, const char *key, void *value, size_t size) {
  Path path;
  if (strcmp(key, KEY)) return REAL(lgetxattr)(name, key, value, size);
  resolve(AT_FDCWD, name, path);
  return look(path, value, size);
}

ssize_t getxattr(const char *name, const char *key, void *value, size_t size) {
  return strcmp(key, KEY) ? REAL(getxattr)(name, key, value, size) : lgetxattr(name, key, value, size);
}

int setxattr(const char *name, const char *key, const void *value, size_t size, int flags) {
  if (!strcmp(key, KEY) && is("refuse")) return errno = EPERM, -1;
  return REAL(setxattr)(name, key, value, size, flags);
}

int mkdir(const char *name, mode_t mode) { return made(REAL(mkdir)(name, mode), AT_FDCWD, name); }

int mkdirat(int dir, const char *name, mode_t mode) { return made(REAL(mkdirat)(dir, name, mode), dir, name); }

int mknodat(int dir, const char *name, mode_t mode, dev_t device) {
  return made(REAL(mknodat)(dir, name, mode, device), dir, name);
}

// The addon makes nodes by number. Six arguments are what a system call has at the most, and registers hold them anyway.
long syscall(long number, ...) {
  va_list arguments;
  va_start(arguments, number);
  long a[6];
  for (int i = 0; i < 6; i++) a[i] = va_arg(arguments, long);
  va_end(arguments);
  long result = REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  return number == SYS_mknodat ? made((int)result, (int)a[0], (const char *)a[1]) : result;
}

int symlinkat(const char *target, int dir, const char *name) {
  return made(REAL(symlinkat)(target, dir, name), dir, name);
}

static int open_with(__typeof__(&openat) real, int dir, const char *name, int flags, mode_t mode) {
  int isNew = (flags & O_CREAT) && !exists(dir, name), fd = real(dir, name, flags, mode);
  return isNew ? made(fd, dir, name) : fd;
}

#define MODE_OF(flags)                 \
  mode_t mode = 0;                     \
  if ((flags) & O_CREAT) {             \
    va_list arguments;                 \
    va_start(arguments, flags);        \
    mode = va_arg(arguments, mode_t);  \
    va_end(arguments);                 \
  }

int open(const char *name, int flags, ...) {
  MODE_OF(flags)
  return open_with(REAL(openat), AT_FDCWD, name, flags, mode);
}

int open64(const char *name, int flags, ...) {
  MODE_OF(flags)
  return open_with(REAL(openat), AT_FDCWD, name, flags, mode);
}

int openat(int dir, const char *name, int flags, ...) {
  MODE_OF(flags)
  return open_with(REAL(openat), dir, name, flags, mode);
}

int openat64(int dir, const char *name, int flags, ...) {
  MODE_OF(flags)
  return open_with(REAL(openat), dir, name, flags, mode);
}
