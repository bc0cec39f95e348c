// What concerns a thread as a whole: its umask, and how much of the cores it may have beside others.
#include <cerrno>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "napi.h"

namespace hawser {
namespace {

// ownUmask(): gives the calling thread a umask of its own, 0, so that modes are what they are asked to be.
napi_value own_umask(napi_env env, napi_callback_info) {
  if (unshare(CLONE_FS)) return number(env, -errno);
  umask(0);
  return number(env, 0);
}

// threadID(): gettid(2), which older C libraries have no function for.
napi_value thread_id(napi_env env, napi_callback_info) { return number(env, syscall(SYS_gettid)); }

// setIdle(threadID, isIdle): SCHED_IDLE gets what nobody else wants of a core (sched(7)); the nice value is kept.
napi_value set_idle(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  int thread = static_cast<int>(args.integer(0));
  bool is_idle = args.integer(1) != 0;
  if (!args.ok()) return nullptr;
  sched_param none{};
  return number(env, sched_setscheduler(thread, is_idle ? SCHED_IDLE : SCHED_OTHER, &none) ? -errno : 0);
}

}  // namespace

void define_thread(napi_env env, napi_value exports) {
  define(env, exports, "ownUmask", own_umask);
  define(env, exports, "threadID", thread_id);
  define(env, exports, "setIdle", set_idle);
}

}  // namespace hawser
