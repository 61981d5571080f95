/*
 * What poll, select and epoll say of event queues and of /dev/iommu, and what
 * reads and writes of odd sizes are answered. Prints a line a step; the expected
 * text was printed by Linux.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/wait.h>
#include <unistd.h>

#define NR(n) _IO(';', n)
#define SELFTEST 0xdeadbeef
#define VEVENTQ_SELFTEST 0xbeefbeef
#define HWPT_SELFTEST 0xdead

static int fd;
static uint32_t idev;

static void call(int cmd, uint32_t *words, uint32_t count) {
	words[0] = 4 * count;
	if (ioctl(fd, NR(cmd), words)) { printf("%x: %s\n", cmd, strerror(errno)); exit(1); }
}

static uint32_t hwpt(uint32_t pt, uint32_t flags, uint32_t fault, uint32_t kind, void *data, uint32_t length) {
	uint32_t w[12] = { 0, flags, idev, pt, 0, 0, kind, length }; uint64_t at = (uint64_t)data;
	memcpy(&w[8], &at, 8); w[10] = fault; call(0x89, w, 12); return w[4];
}

static void test(uint32_t op, uint32_t id, uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e) {
	uint32_t w[18] = { 0, op, id, 0, a, b, c, d, e }; call(0xa0, w, 18); if (op == 2) idev = w[6];
}

static const char *names(int m) {
	static char text[4][40]; static int next; char *t = text[next++ & 3];
	sprintf(t, "%s%s%s%s%s%s", m & POLLIN ? "I" : "", m & POLLOUT ? "O" : "", m & POLLRDNORM ? "R" : "", m & POLLERR ? "E" : "", m & POLLHUP ? "H" : "", m ? "" : "-"); return t;
}

static void ready(const char *what, int q, int ep) {
	struct pollfd p = { .fd = q, .events = POLLIN | POLLOUT | POLLRDNORM }; struct timeval now = { 0 };
	struct epoll_event e = { 0 }; fd_set r, w, x;
	FD_ZERO(&r); FD_ZERO(&w); FD_ZERO(&x); FD_SET(q, &r); FD_SET(q, &w); FD_SET(q, &x);
	poll(&p, 1, 0); select(q + 1, &r, &w, &x, &now); epoll_wait(ep, &e, 1, 0);
	printf("%s: poll %s, select %s%s%s, epoll %s\n", what, names(p.revents), FD_ISSET(q, &r) ? "r" : "", FD_ISSET(q, &w) ? "w" : "", FD_ISSET(q, &x) ? "x" : "", names(e.events));
}

static void transfer(const char *what, long n) { printf("%s: %ld %s\n", what, n, n < 0 ? strerror(errno) : ""); }

static int watch(int q) {
	struct epoll_event e = { .events = EPOLLIN | EPOLLOUT }; int ep = epoll_create1(EPOLL_CLOEXEC);
	return epoll_ctl(ep, EPOLL_CTL_ADD, q, &e) ? -1 : ep;
}

int main(void) {
	static char buf[4096]; uint32_t cookie[2] = { 0 }, seven = 7; int pipes[2];
	setvbuf(stdout, 0, _IONBF, 0);
	fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (fd < 0) { perror("/dev/iommu"); return 1; }
	{
		/* No poll of its own: always ready, and epoll does not take it. */
		struct pollfd p = { .fd = fd, .events = POLLIN | POLLOUT };
		poll(&p, 1, 0); printf("iommufd: poll %s\n", names(p.revents));
	}
	transfer("read 8", read(fd, buf, 8)); transfer("read 40", read(fd, buf, 40)); transfer("read 64", read(fd, buf, 64)); transfer("write 8", write(fd, buf, 8));
	uint32_t a[3] = { 0 }; call(0x81, a, 3); uint32_t ioas = a[2];
	uint32_t m[18] = { 0, 2, ioas }; call(0xa0, m, 18); uint32_t stdev = m[4]; idev = m[6];
	uint32_t f[4] = { 0 }; call(0x8e, f, 4); int q = f[3], ep = watch(q);
	test(10, stdev, hwpt(ioas, 4, f[2], 0, 0, 0), 0, 0, 0, 0);
	ready("fault queue", q, ep); transfer("empty", read(q, buf, 80));
	test(15, 0, idev, 0, 2, 3, 0xdeadbeef); ready("a fault", q, ep);
	transfer("read 64", read(q, buf, 64)); transfer("read 39", read(q, buf, 39)); ready("still", q, ep);
	transfer("read 4000", read(q, buf, 4000)); memcpy(cookie, buf + 36, 4); ready("then", q, ep);
	transfer("write 4", write(q, cookie, 4)); transfer("answer", write(q, cookie, 8));
	transfer("lseek", lseek(q, 0, SEEK_CUR)); fcntl(q, F_SETFL, O_NONBLOCK); printf("flags %o\n", fcntl(q, F_GETFL) & (O_ACCMODE | O_NONBLOCK));
	fcntl(q, F_SETFL, 0); transfer("empty, of any size", read(q, buf, 4000));
	uint32_t parent = hwpt(ioas, 1, 0, 0, 0, 0);
	uint32_t v[10] = { 0, 0, SELFTEST, idev, parent }; call(0x90, v, 10); uint32_t viommu = v[5];
	uint32_t d[6] = { 0, viommu, idev, 0, 0x99, 0 }; call(0x91, d, 6);
	uint32_t e[8] = { 0, 0, viommu, VEVENTQ_SELFTEST, 2 }; call(0x93, e, 8); int ev = e[6], evp = watch(ev);
	test(10, stdev, hwpt(viommu, 0, 0, HWPT_SELFTEST, &seven, 4), 0, 0, 0, 0);
	ready("event queue", ev, evp); transfer("empty", read(ev, buf, 64)); transfer("write", write(ev, buf, 8));
	if (pipe(pipes)) return 1;
	pid_t child = fork();
	if (child == 0) {
		/* Waits in the real kernel until an event comes. */
		struct pollfd p = { .fd = ev, .events = POLLIN };
		close(pipes[0]); close(pipes[1]);
		int n = poll(&p, 1, 10000); printf("the child: %d %s\n", n, names(p.revents)); _exit(0);
	}
	close(pipes[1]); if (read(pipes[0], buf, 1)) return 1;
	test(17, 0, idev, 0, 0, 0, 0); waitpid(child, 0, 0);
	ready("an event", ev, evp); test(17, 0, idev, 0, 0, 0, 0); test(17, 0, idev, 0, 0, 0, 0);
	for (int i = 0; i < 4; i++) { transfer("read 12", read(ev, buf, 12)); ready("then", ev, evp); }
	int copy = dup(ev); close(ev); ready("a copy", copy, evp); close(copy); close(q); printf("the lowest number: %d\n", dup(0) == q);
	return 0;
}
