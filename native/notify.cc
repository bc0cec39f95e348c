// notify: one datagram to a unix socket, for sd_notify(3), which Node cannot send by itself.
#include <cerrno>
#include <cstring>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "napi.h"

namespace hawser {
namespace {

// notify(socket, bytes): 0 or a negative errno. A path that begins with "@" is in the abstract namespace.
napi_value notify(napi_env env, napi_callback_info info) {
  Args args(env, info, 2);
  char path[sizeof(sockaddr_un::sun_path)];
  args.name(0, path);
  Bytes message = args.bytes(1);
  if (!args.ok()) return nullptr;
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  size_t length = strlen(path);
  memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = 0;
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return number(env, -errno);
  auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length + (path[0] == '@' ? 0 : 1));
  ssize_t sent = sendto(fd, message.data, message.size, MSG_NOSIGNAL, reinterpret_cast<sockaddr *>(&address), size);
  int64_t result = sent < 0 ? -errno : 0;
  close(fd);
  return number(env, result);
}

}  // namespace

void define_notify(napi_env env, napi_value exports) { define(env, exports, "notify", notify); }

}  // namespace hawser
