/*
 * The least that a supervisor can do, in C: takes each iommufd ioctl of the
 * program and answers 0.
 *
 *   supervisor nothing PROGRAM ARGS...
 *   supervisor same PROGRAM ARGS...   and makes the system calls that serving such an ioctl takes: waits for several
 *                                     descriptors, asks for closes, which file it is, reads 24 bytes, writes 24 bytes
 *   supervisor opens PROGRAM ARGS...  takes each openat instead, and lets the kernel do it
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#define SYNC_WAKE_UP 1
#define FIELD(name) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, name))

static void fail(const char *what)
{
	fprintf(stderr, "supervisor: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int install(int nr)
{
	struct sock_filter ioctls[] = {
		FIELD(nr),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 5),
		FIELD(args[1]),
		BPF_STMT(BPF_ALU | BPF_RSH | BPF_K, 8),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ';', 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_filter others[] = {
		FIELD(nr),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = nr == SYS_ioctl ? 8 : 4, .filter = nr == SYS_ioctl ? ioctls : others };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("PR_SET_NO_NEW_PRIVS");
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
		       SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
}

int main(int argc, char **argv)
{
	int same, opens, ready[2], listener, links, closes, pid, nr, said = -1;
	struct epoll_event event = { .events = EPOLLIN };
	struct seccomp_notif request;
	struct seccomp_notif_resp response;
	struct iovec here = { 0 }, there = { 0 };
	char path[64], text[4096], bytes[24];
	int epoll;

	if (argc < 3)
		return 2;
	same = !strcmp(argv[1], "same");
	opens = !strcmp(argv[1], "opens");
	nr = opens ? SYS_openat : SYS_ioctl;
	if (pipe2(ready, O_CLOEXEC))
		fail("pipe");
	pid = fork();
	if (pid == 0) {
		int fd;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fd = install(nr);
		if (write(ready[1], &fd, sizeof(fd)) != sizeof(fd) || fd < 0)
			fail("seccomp");
		/* The listener is taken by then. */
		if (fcntl(fd, F_GETFD) >= 0 && raise(SIGSTOP))
			fail("SIGSTOP");
		close(fd);
		execvp(argv[2], argv + 2);
		fail(argv[2]);
	}
	if (read(ready[0], &said, sizeof(said)) != sizeof(said) || said < 0)
		return 1;
	waitpid(pid, NULL, WUNTRACED);
	listener = syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, pid, 0), said, 0);
	if (listener < 0)
		fail("pidfd_getfd");
	ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP);
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	links = open(path, O_PATH | O_CLOEXEC);
	closes = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	epoll_ctl(epoll, EPOLL_CTL_ADD, closes, &event);
	kill(pid, SIGCONT);
	for (;;) {
		if (same && (epoll_wait(epoll, &event, 1, -1) < 1 || (event.events & EPOLLHUP)))
			break;
		memset(&request, 0, sizeof(request));
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &request)) {
			if (errno == EINTR)
				continue;
			break;
		}
		if (same) {
			if (read(closes, text, sizeof(text)) >= 0)
				fail("inotify");
			snprintf(path, sizeof(path), "%llu", request.data.args[0]);
			if (readlinkat(links, path, text, sizeof(text)) < 0)
				fail("readlinkat");
			here.iov_base = bytes;
			there.iov_base = (void *)request.data.args[2];
			here.iov_len = there.iov_len = sizeof(bytes);
			process_vm_readv(request.pid, &here, 1, &there, 1, 0);
			process_vm_writev(request.pid, &here, 1, &there, 1, 0);
		}
		memset(&response, 0, sizeof(response));
		response.id = request.id;
		response.flags = opens ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0;
		ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
	}
	return 0;
}
