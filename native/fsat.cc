// System calls relative to directory descriptors, for writing an archive's tree below a root that it cannot leave.
//
// Names are single path components: the caller walks paths itself, one component at a time, and no call follows a
// symbolic link in its last component. Results are non-negative, errors are negative errno numbers; only a caller's
// mistake throws. Descriptors belong to the environment that opened them: it alone can close them, and what a thread
// leaves open when it dies is closed then.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <new>
#include <vector>

#include "napi.h"
#include "remove.h"

namespace hawser {
namespace {

// Longest component or link target that the kernel takes, with its NUL byte.
constexpr size_t kPath = 4096;
using Name = char[kPath];

// Resolving again after a rename elsewhere raced with us; openat2(2) asks for that.
constexpr int kResolveTries = 128;

napi_value outcome(napi_env env, int64_t result) { return number(env, result < 0 ? -errno : result); }

// The descriptors of one environment. Node closes those of node:fs when a worker dies, and no others.
class Descriptors {
 public:
  ~Descriptors() {
    for (size_t fd = 0; fd < open_.size(); fd++)
      if (open_[fd]) close(static_cast<int>(fd));
  }

  int adopt(int fd) {
    if (fd < 0) return fd;
    if (open_.size() <= static_cast<size_t>(fd)) open_.resize(static_cast<size_t>(fd) * 2 + 64);
    open_[static_cast<size_t>(fd)] = true;
    return fd;
  }

  int release(int64_t fd) {
    if (fd < 0 || static_cast<size_t>(fd) >= open_.size() || !open_[static_cast<size_t>(fd)]) return errno = EBADF, -1;
    open_[static_cast<size_t>(fd)] = false;
    return close(static_cast<int>(fd));
  }

  static Descriptors &of(napi_env env) {
    void *data = nullptr;
    napi_get_instance_data(env, &data);
    return *static_cast<Descriptors *>(data);
  }

 private:
  std::vector<bool> open_;
};

// A new descriptor, kept account of, or an error.
napi_value opened(napi_env env, int fd) { return outcome(env, Descriptors::of(env).adopt(fd)); }

timespec time_at(Args &args, size_t i) {
  return {static_cast<time_t>(args.integer(i)), static_cast<long>(args.integer(i + 1))};
}

int write_all(int fd, Bytes bytes) {
  while (bytes.size) {
    ssize_t n = write(fd, bytes.data, bytes.size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    bytes = {bytes.data + n, bytes.size - static_cast<size_t>(n)};
  }
  return 0;
}

// openRoot(path): a directory to stand at.
napi_value open_root(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  Name path;
  args.name(0, path);
  if (!args.ok()) return nullptr;
  return opened(env, open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));
}

// openDirectory(dir, name)
napi_value open_directory(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  args.name(1, name);
  if (!args.ok()) return nullptr;
  return opened(env, openat(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

// openBelow(root, path): no component may be a symbolic link, the last one included (ELOOP).
napi_value open_below(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  Name path;
  int root = static_cast<int>(args.integer(0));
  args.name(1, path);
  if (!args.ok()) return nullptr;
  open_how how = {};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
  int fd = -1;
  for (int tries = 0; tries < kResolveTries; tries++) {
    fd = static_cast<int>(syscall(SYS_openat2, root, path, &how, sizeof how));
    if (fd >= 0 || (errno != EAGAIN && errno != EINTR)) break;
  }
  return opened(env, fd);
}

napi_value close_fd(napi_env env, napi_callback_info info) {
  Args args(env, info, 1);
  int64_t fd = args.integer(0);
  if (!args.ok()) return nullptr;
  return outcome(env, Descriptors::of(env).release(fd));
}

// status(dir, name, results): mode, uid, gid, rdev, atime s, atime ns, mtime s, mtime ns. An empty name is dir itself.
napi_value status(napi_env env, napi_callback_info info) {
  Args args(env, info, 3);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  args.name(1, name);
  double *results = args.results(2, 8);
  if (!args.ok()) return nullptr;
  // Not fstatat: as a symbol it needs glibc 2.33, and Node itself is content with 2.28.
  struct statx st;
  if (statx(dir, name, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH, STATX_BASIC_STATS, &st)) return number(env, -errno);
  const dev_t device = makedev(st.stx_rdev_major, st.stx_rdev_minor);
  const double values[] = {static_cast<double>(st.stx_mode),         static_cast<double>(st.stx_uid),
                           static_cast<double>(st.stx_gid),          static_cast<double>(device),
                           static_cast<double>(st.stx_atime.tv_sec), static_cast<double>(st.stx_atime.tv_nsec),
                           static_cast<double>(st.stx_mtime.tv_sec), static_cast<double>(st.stx_mtime.tv_nsec)};
  memcpy(results, values, sizeof values);
  return number(env, 0);
}

// readLink(dir, name): the target, or a number when there is none.
napi_value read_link(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  Name name, target;
  int dir = static_cast<int>(args.integer(0));
  args.name(1, name);
  if (!args.ok()) return nullptr;
  ssize_t length = readlinkat(dir, name, target, sizeof target);
  if (length < 0) return number(env, -errno);
  napi_value text = nullptr;
  napi_create_string_latin1(env, target, static_cast<size_t>(length), &text);
  return text;
}

// makeDirectory(dir, name, mode)
napi_value make_directory(napi_env env, napi_callback_info info) {
  Args args(env, info, 3);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  mode_t mode = static_cast<mode_t>(args.integer(2));
  args.name(1, name);
  if (!args.ok()) return nullptr;
  return outcome(env, mkdirat(dir, name, mode));
}

// makeSymlink(dir, name, target)
napi_value make_symlink(napi_env env, napi_callback_info info) {
  Args args(env, info, 3);
  Name name, target;
  int dir = static_cast<int>(args.integer(0));
  args.name(1, name);
  args.name(2, target);
  if (!args.ok()) return nullptr;
  return outcome(env, symlinkat(target, dir, name));
}

// makeLink(targetDir, targetName, dir, name)
napi_value make_link(napi_env env, napi_callback_info info) {
  Args args(env, info, 4);
  Name target, name;
  int target_dir = static_cast<int>(args.integer(0)), dir = static_cast<int>(args.integer(2));
  args.name(1, target);
  args.name(3, name);
  if (!args.ok()) return nullptr;
  return outcome(env, linkat(target_dir, target, dir, name, 0));
}

// makeNode(dir, name, mode with type, major, minor)
napi_value make_node(napi_env env, napi_callback_info info) {
  Args args(env, info, 5);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  mode_t mode = static_cast<mode_t>(args.integer(2));
  dev_t device = makedev(static_cast<unsigned>(args.integer(3)), static_cast<unsigned>(args.integer(4)));
  args.name(1, name);
  if (!args.ok()) return nullptr;
  // The kernel takes 32 bits: 12 of a major number, 20 of a minor one.
  if (device > UINT32_MAX) return number(env, -EINVAL);
  // Not mknodat, for the same reason as in status.
  return outcome(env, syscall(SYS_mknodat, dir, name, mode, static_cast<unsigned>(device)));
}

int create_at(int dir, const char *name, mode_t mode) {
  return openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
}

// Owner, mode and times of an open file, in the order that keeps setuid bits: chown clears them. What is right already is
// not set: to look costs less than to write an inode, and most files are root's.
int finish_fd(int fd, uid_t uid, gid_t gid, mode_t mode, const timespec times[2]) {
  struct statx is;
  // Not fstat, for the same reason as in status.
  if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &is)) return -1;
  bool owned = is.stx_uid == uid && is.stx_gid == gid;
  if (!owned && fchown(fd, uid, gid)) return -1;
  if ((!owned || (is.stx_mode & 07777) != mode) && fchmod(fd, mode)) return -1;
  return futimens(fd, times);
}

// createFile(dir, name): a descriptor for writing; the file must not exist.
napi_value create_file(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  args.name(1, name);
  if (!args.ok()) return nullptr;
  return opened(env, create_at(dir, name, 0600));
}

// writeFile(fd, bytes, start, end)
napi_value write_file(napi_env env, napi_callback_info info) {
  Args args(env, info, 4);
  int fd = static_cast<int>(args.integer(0));
  Bytes bytes = args.slice(1, 2, 3);
  if (!args.ok()) return nullptr;
  return outcome(env, write_all(fd, bytes));
}

// putFile(dir, name, bytes, start, end, uid, gid, mode, mtime s, mtime ns, atime s, atime ns): a small file's whole life.
napi_value put_file(napi_env env, napi_callback_info info) {
  Args args(env, info, 12);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  uid_t uid = static_cast<uid_t>(args.integer(5));
  gid_t gid = static_cast<gid_t>(args.integer(6));
  mode_t mode = static_cast<mode_t>(args.integer(7));
  timespec times[2] = {time_at(args, 10), time_at(args, 8)};
  args.name(1, name);
  Bytes bytes = args.slice(2, 3, 4);
  if (!args.ok()) return nullptr;
  int fd = create_at(dir, name, mode & 0777);
  if (fd < 0) return number(env, -errno);
  int error = write_all(fd, bytes) || finish_fd(fd, uid, gid, mode, times) ? errno : 0;
  close(fd);
  return number(env, -error);
}

// setOwner(dir, name, uid, gid)
napi_value set_owner(napi_env env, napi_callback_info info) {
  Args args(env, info, 4);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  uid_t uid = static_cast<uid_t>(args.integer(2));
  gid_t gid = static_cast<gid_t>(args.integer(3));
  args.name(1, name);
  if (!args.ok()) return nullptr;
  return outcome(env, fchownat(dir, name, uid, gid, AT_SYMLINK_NOFOLLOW));
}

// setMode(dir, name, mode): never for a symbolic link, which it would follow.
napi_value set_mode(napi_env env, napi_callback_info info) {
  Args args(env, info, 3);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  mode_t mode = static_cast<mode_t>(args.integer(2));
  args.name(1, name);
  if (!args.ok()) return nullptr;
  return outcome(env, fchmodat(dir, name, mode, 0));
}

// setTimes(dir, name, mtime s, mtime ns, atime s, atime ns)
napi_value set_times(napi_env env, napi_callback_info info) {
  Args args(env, info, 6);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  timespec times[2] = {time_at(args, 4), time_at(args, 2)};
  args.name(1, name);
  if (!args.ok()) return nullptr;
  return outcome(env, utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW));
}

// There is no setxattrat in the kernels that we must run on; /proc/self/fd leads to the directory without a lookup.
using ProcPath = char[kPath + 32];
// Longest key that the kernel takes, with its NUL byte.
using Key = char[XATTR_NAME_MAX + 1];
void proc_path(ProcPath &path, int dir, const char *name) {
  snprintf(path, sizeof path, "/proc/self/fd/%d%s%s", dir, *name ? "/" : "", name);
}

// setXattr(dir, name, key, value). An empty name is dir itself.
napi_value set_xattr(napi_env env, napi_callback_info info) {
  Args args(env, info, 4);
  Name name;
  Key key;
  ProcPath path;
  int dir = static_cast<int>(args.integer(0));
  args.name(1, name);
  args.name(2, key);
  Bytes value = args.bytes(3);
  if (!args.ok()) return nullptr;
  proc_path(path, dir, name);
  return outcome(env, *name ? lsetxattr(path, key, value.data, value.size, 0)
                            : setxattr(path, key, value.data, value.size, 0));
}

// listXattrs(dir, name): the keys, each followed by a NUL byte, or a number. An empty name is dir itself.
napi_value list_xattrs(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  static thread_local char keys[XATTR_LIST_MAX];
  Name name;
  ProcPath path;
  int dir = static_cast<int>(args.integer(0));
  args.name(1, name);
  if (!args.ok()) return nullptr;
  proc_path(path, dir, name);
  ssize_t length = *name ? llistxattr(path, keys, sizeof keys) : listxattr(path, keys, sizeof keys);
  if (length < 0) return number(env, -errno);
  napi_value text = nullptr;
  napi_create_string_latin1(env, keys, static_cast<size_t>(length), &text);
  return text;
}

// getXattr(dir, name, key, value): the value's length, or a negative errno. An empty name is dir itself.
napi_value get_xattr(napi_env env, napi_callback_info info) {
  Args args(env, info, 4);
  Name name;
  Key key;
  ProcPath path;
  int dir = static_cast<int>(args.integer(0));
  args.name(1, name);
  args.name(2, key);
  Bytes value = args.bytes(3);
  if (!args.ok()) return nullptr;
  proc_path(path, dir, name);
  return outcome(env, *name ? lgetxattr(path, key, value.data, value.size)
                            : getxattr(path, key, value.data, value.size));
}

// removeTree(dir, name)
napi_value remove_tree(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  args.name(1, name);
  if (!args.ok()) return nullptr;
  return outcome(env, remove_at(dir, name));
}

// removeFile(dir, name): whatever is there but a directory.
napi_value remove_file(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  Name name;
  int dir = static_cast<int>(args.integer(0));
  args.name(1, name);
  if (!args.ok()) return nullptr;
  return outcome(env, unlinkat(dir, name, 0));
}

}  // namespace

void define_fsat(napi_env env, napi_value exports) {
  auto *descriptors = new (std::nothrow) Descriptors();
  auto finalize = [](napi_env, void *data, void *) { delete static_cast<Descriptors *>(data); };
  if (!descriptors || napi_set_instance_data(env, descriptors, finalize, nullptr) != napi_ok) {
    delete descriptors;
    napi_throw_error(env, "ERR_MEMORY", "no memory for descriptors");
    return;
  }
  define(env, exports, "openRoot", open_root);
  define(env, exports, "openDirectory", open_directory);
  define(env, exports, "openBelow", open_below);
  define(env, exports, "close", close_fd);
  define(env, exports, "status", status);
  define(env, exports, "readLink", read_link);
  define(env, exports, "makeDirectory", make_directory);
  define(env, exports, "makeSymlink", make_symlink);
  define(env, exports, "makeLink", make_link);
  define(env, exports, "makeNode", make_node);
  define(env, exports, "createFile", create_file);
  define(env, exports, "writeFile", write_file);
  define(env, exports, "putFile", put_file);
  define(env, exports, "setOwner", set_owner);
  define(env, exports, "setMode", set_mode);
  define(env, exports, "setTimes", set_times);
  define(env, exports, "setXattr", set_xattr);
  define(env, exports, "listXattrs", list_xattrs);
  define(env, exports, "getXattr", get_xattr);
  define(env, exports, "removeFile", remove_file);
  define(env, exports, "removeTree", remove_tree);
}

}  // namespace hawser
