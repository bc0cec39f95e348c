// What may take long, beside the main thread, which may not wait for a disk: syncfs(2) of a file system, and removing a
// whole tree. The only calls that use a thread of libuv's pool; they own nothing but the descriptors that they open and
// close themselves.
#include <cerrno>
#include <fcntl.h>
#include <new>
#include <unistd.h>

#include "napi.h"
#include "remove.h"

namespace hawser {
namespace {

// 0, or -1 with errno.
using Act = int (*)(const char *path);

struct Work {
  napi_async_work handle;
  napi_deferred deferred;
  Act act;
  char path[4096];
  int64_t result;
};

int sync_at(const char *path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -1;
  int result = syncfs(fd), error = errno;
  close(fd);
  errno = error;
  return result;
}

int remove_all(const char *path) { return remove_at(AT_FDCWD, path); }

void execute(napi_env, void *data) {
  auto *work = static_cast<Work *>(data);
  work->result = work->act(work->path) < 0 ? -errno : 0;
}

void complete(napi_env env, napi_status, void *data) {
  auto *work = static_cast<Work *>(data);
  napi_resolve_deferred(env, work->deferred, number(env, work->result));
  napi_delete_async_work(env, work->handle);
  delete work;
}

// A promise of 0 or a negative errno for the path that is the first argument.
napi_value later(napi_env env, napi_callback_info info, const char *title, Act act) {
  Args args(env, info, 1);
  auto *work = new (std::nothrow) Work();
  if (!work) return napi_throw_error(env, "ERR_MEMORY", "no memory for what is to be done later"), nullptr;
  work->act = act;
  args.name(0, work->path);
  napi_value promise = nullptr, name = nullptr;
  if (args.ok() && napi_create_promise(env, &work->deferred, &promise) == napi_ok &&
      napi_create_string_utf8(env, title, NAPI_AUTO_LENGTH, &name) == napi_ok &&
      napi_create_async_work(env, nullptr, name, execute, complete, work, &work->handle) == napi_ok &&
      napi_queue_async_work(env, work->handle) == napi_ok)
    return promise;
  delete work;
  return nullptr;
}

// syncFileSystem(path)
napi_value sync_file_system(napi_env env, napi_callback_info info) { return later(env, info, "syncfs", sync_at); }

// removePath(path)
napi_value remove_path(napi_env env, napi_callback_info info) { return later(env, info, "remove", remove_all); }

}  // namespace

void define_later(napi_env env, napi_value exports) {
  define(env, exports, "syncFileSystem", sync_file_system);
  define(env, exports, "removePath", remove_path);
}

}  // namespace hawser
