// A service manager of one service, for tests: what systemd does for hawser.service, without being process 1.
//
// Usage: manager SOCKET NOTIFY COMMAND [ARG ...]
//
// Listens on SOCKET and hands it to the command as sd_listen_fds(3) says; takes sd_notify(3) datagrams at NOTIFY and
// follows MAINPID; starts the command again when its main process ends; on SIGTERM ends the main process and itself.
// Says on standard output what happened, a line each: "started PID", "notified PID LINE", "ended PID HOW".
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <string>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr int kListenFd = 3;
constexpr int kRestartMs = 200;

[[noreturn]] void die(const char *what) {
  fprintf(stderr, "manager: %s: %s\n", what, strerror(errno));
  exit(1);
}

int bind_unix(const char *path, int type) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (strlen(path) >= sizeof(address.sun_path)) errno = ENAMETOOLONG, die(path);
  strcpy(address.sun_path, path);
  unlink(path);
  int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr *>(&address), sizeof(address)) < 0) die(path);
  return fd;
}

pid_t start(char **command, int listening, const char *notify) {
  pid_t pid = fork();
  if (pid < 0) die("fork");
  if (pid > 0) return printf("started %d\n", pid), pid;
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (listening == kListenFd) fcntl(kListenFd, F_SETFD, 0);
  else if (dup2(listening, kListenFd) < 0) die("dup2");
  setenv("LISTEN_FDS", "1", 1);
  setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
  setenv("NOTIFY_SOCKET", notify, 1);
  execv(command[0], command);
  die(command[0]);
}

// The process that a notification makes the main one, or 0.
pid_t hear(int fd) {
  char text[4096];
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))];
  iovec part = {text, sizeof(text) - 1};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t size = recvmsg(fd, &message, MSG_DONTWAIT);
  if (size <= 0) return 0;
  text[size] = 0;
  pid_t sender = 0, main = 0;
  for (cmsghdr *one = CMSG_FIRSTHDR(&message); one; one = CMSG_NXTHDR(&message, one))
    if (one->cmsg_type == SCM_CREDENTIALS) sender = reinterpret_cast<ucred *>(CMSG_DATA(one))->pid;
  for (char *line = strtok(text, "\n"); line; line = strtok(nullptr, "\n")) {
    printf("notified %d %s\n", sender, line);
    if (!strncmp(line, "MAINPID=", 8)) main = atoi(line + 8);
  }
  return main;
}

}  // namespace

int main(int count, char **arguments) {
  if (count < 4) return fprintf(stderr, "usage: manager SOCKET NOTIFY COMMAND [ARG ...]\n"), 2;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  umask(0077);
  int listening = bind_unix(arguments[1], SOCK_STREAM);
  if (listen(listening, 1024) < 0) die("listen");
  int notify = bind_unix(arguments[2], SOCK_DGRAM);
  int on = 1;
  setsockopt(notify, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGCHLD);
  sigaddset(&mask, SIGTERM);
  sigprocmask(SIG_BLOCK, &mask, nullptr);
  int signals = signalfd(-1, &mask, SFD_CLOEXEC);
  pid_t main_pid = start(arguments + 3, listening, arguments[2]);
  bool stopping = false;
  for (;;) {
    pollfd polled[] = {{signals, POLLIN, 0}, {notify, POLLIN, 0}};
    if (poll(polled, 2, main_pid ? -1 : kRestartMs) < 0 && errno != EINTR) die("poll");
    if (polled[1].revents)
      if (pid_t next = hear(notify)) main_pid = next;
    if (polled[0].revents) {
      signalfd_siginfo info;
      if (read(signals, &info, sizeof(info)) < 0) die("signalfd");
      if (info.ssi_signo == SIGTERM) {
        stopping = true;
        if (main_pid) kill(main_pid, SIGTERM);
      }
    }
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
      if (WIFSIGNALED(status)) printf("ended %d signal %d\n", pid, WTERMSIG(status));
      else printf("ended %d exit %d\n", pid, WEXITSTATUS(status));
      if (pid == main_pid) main_pid = 0;
    }
    if (main_pid) continue;
    if (stopping) return 0;
    if (!polled[0].revents && !polled[1].revents) main_pid = start(arguments + 3, listening, arguments[2]);
  }
}
