// Removing a tree by descriptors, depth first: nothing is followed, and memory is what one directory on each level takes.
#include "remove.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

namespace hawser {
namespace {

// Deepest tree that is taken: the kernel's PATH_MAX allows no deeper one to be made by a path.
constexpr int kDepthMax = 2048;

// Below the first level, what somebody else was faster with is as good as removed.
int gone(int depth) { return errno == ENOENT && depth ? 0 : -1; }

int remove_below(int dir, const char *name, int depth) {
  if (!unlinkat(dir, name, 0)) return 0;
  if (errno != EISDIR && errno != EPERM) return gone(depth);
  if (depth == kDepthMax) return errno = ENAMETOOLONG, -1;
  int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return gone(depth);
  DIR *entries = fdopendir(fd);
  if (!entries) {
    int error = errno;
    close(fd);
    return errno = error, -1;
  }
  int result = 0;
  while (!result) {
    errno = 0;
    const dirent *entry = readdir(entries);
    if (!entry) {
      result = errno ? -1 : 0;
      break;
    }
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    result = remove_below(dirfd(entries), entry->d_name, depth + 1);
  }
  int error = errno;
  closedir(entries);
  errno = error;
  if (result) return -1;
  return unlinkat(dir, name, AT_REMOVEDIR) ? gone(depth) : 0;
}

}  // namespace

int remove_at(int dir, const char *name) { return remove_below(dir, name, 0); }

}  // namespace hawser
