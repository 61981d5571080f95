/*
 * What a program may do with descriptors, processes, threads and signals,
 * around the smallest of iommufd's calls. Each mode prints what it saw; the
 * expected text is in the tests.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct destroy { uint32_t size, id; };
struct heap_alloc { uint64_t len; uint32_t fd, fd_flags; uint64_t heap_flags; };
#define IOMMU_DESTROY 0x3b80
#define IOMMU_IOAS_ALLOC 0x3b81
#define DMA_HEAP_IOCTL_ALLOC _IOWR('H', 0, struct heap_alloc)

static int die(const char *what) { printf("%s: %s\n", what, strerror(errno)); exit(1); }
static int iommufd(int flags) { int fd = open("/dev/iommu", O_RDWR | flags); if (fd < 0) die("open"); return fd; }
static int alloc(int fd) { struct ioas_alloc a = { sizeof a, 0, 0 }; return ioctl(fd, IOMMU_IOAS_ALLOC, &a) ? -errno : (int)a.out_ioas_id; }
static int destroy(int fd, int id) { struct destroy d = { sizeof d, id }; return ioctl(fd, IOMMU_DESTROY, &d) ? -errno : 0; }

static int one(void) { int fd = iommufd(0); printf("fd %d ioas %d\n", fd, alloc(fd)); return 0; }

static void *hammer(void *p) { long *a = p; int fd = a[0]; for (long i = 0; i < a[1]; i++) { int id = alloc(fd); if (id < 0 || destroy(fd, id)) { a[2] = 1; break; } } return 0; }
static int threads(int n, int m) {
	pthread_t t[64]; long a[64][3]; int fd = iommufd(0), bad = 0;
	for (int i = 0; i < n; i++) { a[i][0] = fd; a[i][1] = m / 2; a[i][2] = 0; pthread_create(&t[i], 0, hammer, a[i]); }
	for (int i = 0; i < n; i++) { pthread_join(t[i], 0); bad += a[i][2]; }
	printf("%d threads, %d failed\n", n, bad); return 0;
}

static int forks(int n) {
	int fd = iommufd(0), ok = 0;
	for (int i = 0; i < n; i++) if (fork() == 0) { int own = iommufd(0); _exit(alloc(fd) > 0 && alloc(own) == 1 ? 0 : 1); }
	for (int s; wait(&s) > 0;) ok += s == 0;
	printf("%d of %d children\n", ok, n); return 0;
}

static int scm(void) {
	int sv[2]; if (socketpair(AF_UNIX, SOCK_DGRAM, 0, sv)) die("socketpair");
	char c = 'x', buf[CMSG_SPACE(sizeof(int))]; struct iovec io = { &c, 1 };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = buf, .msg_controllen = sizeof buf };
	if (fork() == 0) {
		close(sv[0]); if (recvmsg(sv[1], &m, 0) < 0) die("recvmsg");
		usleep(20000); int fd; memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
		printf("child got fd %d ioas %d\n", fd, alloc(fd)); exit(0);
	}
	int fd = iommufd(0); printf("parent ioas %d\n", alloc(fd)); fflush(stdout);
	struct cmsghdr *h = CMSG_FIRSTHDR(&m); h->cmsg_level = SOL_SOCKET; h->cmsg_type = SCM_RIGHTS; h->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(h), &fd, sizeof fd); if (sendmsg(sv[0], &m, 0) < 0) die("sendmsg");
	close(fd); printf("after close %d\n", alloc(fd)); fflush(stdout); wait(0); return 0;
}

static int onexec(const char *self, int fixed) {
	if (fixed) personality(ADDR_NO_RANDOMIZE);
	char a[16], b[16]; int keep = iommufd(0), gone = iommufd(O_CLOEXEC);
	alloc(keep); snprintf(a, sizeof a, "%d", keep); snprintf(b, sizeof b, "%d", gone);
	execl(self, self, "execed", a, b, (char *)0); return die("exec");
}
static int execed(int keep, int gone) { printf("kept: ioas %d; with O_CLOEXEC: %d\n", alloc(keep), alloc(gone)); return 0; }

static volatile sig_atomic_t ticks;
static void tick(int s) { (void)s; ticks++; }
static int timer(int n) {
	int fd = iommufd(0), bad = 0; struct sigaction sa = { .sa_handler = tick, .sa_flags = SA_RESTART }; sigaction(SIGALRM, &sa, 0);
	struct itimerval it = { { 0, 300 }, { 0, 300 } }; setitimer(ITIMER_REAL, &it, 0);
	for (int i = 0; i < n / 2; i++) { int id = alloc(fd); if (id < 0 || destroy(fd, id)) bad++; }
	memset(&it, 0, sizeof it); setitimer(ITIMER_REAL, &it, 0);
	printf("%d failed, ticked %s\n", bad, ticks > 0 ? "yes" : "no"); return 0;
}

/* A descriptor is reserved, and then the answer cannot be written: the number must come again. */
static int fault(void) {
	int heap = open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC); if (heap < 0) die("open heap");
	struct heap_alloc *a = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	a->len = 4096; a->fd_flags = O_RDWR | O_CLOEXEC; mprotect(a, 4096, PROT_READ);
	int r = ioctl(heap, DMA_HEAP_IOCTL_ALLOC, a); printf("unwritable: %d %s\n", r, strerror(errno));
	struct heap_alloc b = { 4096, 0, O_RDWR | O_CLOEXEC, 0 };
	r = ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &b); printf("then: %d, fd is heap + %d\n", r, (int)b.fd - heap);
	struct stat st; fstat(b.fd, &st);
	printf("size %lld, SEEK_END %lld, SEEK_CUR %ld\n", (long long)st.st_size, (long long)lseek(b.fd, 0, SEEK_END), (long)lseek(b.fd, 0, SEEK_CUR));
	return 0;
}

static int stats(void) {
	int fd = iommufd(O_CLOEXEC | O_NONBLOCK); struct stat st; fstat(fd, &st);
	printf("%s rdev %s, flags %o\n", S_ISCHR(st.st_mode) ? "chr" : "other", st.st_rdev ? "set" : "0", fcntl(fd, F_GETFL));
	int d = dup(fd); close(fd); printf("dup: %d\n", alloc(d)); return 0;
}

static int hostile(void) {
	int fd = iommufd(0); int r = ioctl(fd, IOMMU_IOAS_ALLOC, (void *)1); printf("null: %d %s\n", r, strerror(errno));
	char *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); munmap(p + 4096, 4096);
	uint32_t *q = (uint32_t *)(p + 4096 - 8); q[0] = 12; q[1] = 0; r = ioctl(fd, IOMMU_IOAS_ALLOC, q); printf("cut: %d %s\n", r, strerror(errno));
	r = ioctl(fd, IOMMU_IOAS_ALLOC, (void *)0xffff800000000000UL); printf("kernel: %d %s\n", r, strerror(errno));
	r = ioctl(fd, 0x3bfe, q); printf("unknown: %d %s\n", r, strerror(errno)); r = ioctl(0x7ffffff, IOMMU_IOAS_ALLOC, q); printf("bad fd: %d %s\n", r, strerror(errno));
	int fake = memfd_create("barlink:1", 0); r = ioctl(fake, IOMMU_IOAS_ALLOC, q); printf("made up: %d %s\n", r, strerror(errno)); return 0;
}

/* Orphans: a grandchild that outlives everybody. */
static int orphan(void) {
	int fd = iommufd(0); fflush(stdout);
	if (fork() == 0) { if (fork() == 0) { setsid(); usleep(150000); printf("orphan: ioas %d\n", alloc(fd)); fflush(stdout); _exit(0); } _exit(0); }
	wait(0); printf("parent ends\n"); return 5;
}

static int forever(int nproc) {
	for (int i = 1; i < nproc; i++) if (fork() == 0) break;
	int fd = iommufd(0); printf("."); fflush(stdout); for (;;) { int id = alloc(fd); if (id > 0) destroy(fd, id); }
	return 0;
}

static void *leaderless(void *p) { int fd = (int)(long)p; usleep(30000); printf("leader gone: ioas %d\n", alloc(fd)); fflush(stdout); exit(0); }
static int leader(void) { int fd = iommufd(0); pthread_t t; pthread_create(&t, 0, leaderless, (void *)(long)fd); pthread_exit(0); }

/* Children that open, allocate, export and map without end are killed at any moment. */
static void busy(int shared) {
	for (;;) {
		int fd = iommufd(O_CLOEXEC), heap = open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC), id = alloc(fd);
		struct heap_alloc a = { 65536, 0, O_RDWR | O_CLOEXEC, 0 };
		if (ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &a) == 0) { close(dup(a.fd)); close(a.fd); }
		destroy(fd, id); destroy(shared, alloc(shared)); close(heap); close(fd);
	}
}
static int parents_files(void) {
	char path[64]; int n = 0; snprintf(path, sizeof path, "/proc/%d/fd", getppid());
	DIR *d = opendir(path); if (d == 0) die(path); while (readdir(d)) n++; closedir(d); return n;
}
static int massacre(int n) {
	int shared = iommufd(0), killed = 0; alloc(shared); int before = parents_files(), after = 0; srand(1);
	for (int i = 0; i < n; i++) {
		pid_t p = fork(); if (p == 0) busy(shared);
		usleep(rand() % 4000); kill(p, SIGKILL); int s; waitpid(p, &s, 0); killed += WIFSIGNALED(s) && WTERMSIG(s) == SIGKILL;
	}
	printf("%d killed, still served: %s\n", killed, alloc(shared) > 0 ? "yes" : "no");
	/* The last one's closes are taken up when barlink comes to it. */
	for (int i = 0; i < 100; i++) { alloc(shared); after = parents_files(); if (after <= before) break; usleep(20000); }
	printf("barlink has %d files more\n", after - before); return 0;
}

static int zombies(void) {
	char path[64]; int n = 0; DIR *d = opendir("/proc");
	for (struct dirent *e; d && (e = readdir(d));) {
		int ppid; char state; snprintf(path, sizeof path, "/proc/%.20s/stat", e->d_name); FILE *f = atoi(e->d_name) > 0 ? fopen(path, "r") : 0;
		if (f == 0) continue;
		n += fscanf(f, "%*d (%*[^)]) %c %d", &state, &ppid) == 2 && ppid == getppid() && state == 'Z'; fclose(f);
	}
	if (d) closedir(d);
	return n;
}
/* An orphan ends without a call that barlink sees, while others call all the time. */
static int unseen(void) {
	int fd = iommufd(0), left = 0;
	if (fork() == 0) { if (fork() == 0) { usleep(50000); syscall(SYS_exit, 0); } syscall(SYS_exit, 0); }
	wait(0); usleep(100000);
	for (int i = 0; i < 150 && (i == 0 || left > 0); i++) { for (int k = 0; k < 10; k++) { alloc(fd); usleep(2000); } left = zombies(); }
	printf("zombies: %d\n", left); return 0;
}

/* getpriority of these is served by the test: it waits until somebody wakes, or a signal comes. */
#define WAIT 9001
#define WAKE 9002
static long served(int what) { long r = syscall(SYS_getpriority, what, 0); return r < 0 ? -errno : r; }
static void *waiter(void *p) { *(long *)p = served(WAIT); return 0; }

static int blocked(void) {
	pthread_t t; long r = 0; int fd = iommufd(0); pthread_create(&t, 0, waiter, &r); usleep(50000);
	printf("others go on: ioas %d\n", alloc(fd)); printf("woken: %ld\n", served(WAKE)); pthread_join(t, 0); printf("waited: %ld\n", r); return 0;
}

static void *waker(void *p) { (void)p; usleep(300000); served(WAKE); return 0; }
static int interrupted(int restart) {
	struct sigaction sa = { .sa_handler = tick, .sa_flags = restart ? SA_RESTART : 0 }; sigaction(SIGALRM, &sa, 0);
	sigset_t set; sigemptyset(&set); sigaddset(&set, SIGALRM); pthread_sigmask(SIG_BLOCK, &set, 0);
	pthread_t t; pthread_create(&t, 0, waker, 0); pthread_sigmask(SIG_UNBLOCK, &set, 0);
	struct itimerval it = { { 0, 0 }, { 0, 50000 } }; setitimer(ITIMER_REAL, &it, 0);
	long r = served(WAIT); printf("%ld after %d ticks\n", r, (int)ticks); pthread_join(t, 0); return 0;
}

static int killed(void) {
	pid_t p = fork(); if (p == 0) { served(WAIT); _exit(0); }
	usleep(50000); kill(p, SIGKILL); int s; waitpid(p, &s, 0); printf("signal %d, nobody waits: %ld\n", WTERMSIG(s), served(WAKE)); return 0;
}

int main(int c, char **v) {
	const char *m = c > 1 ? v[1] : ""; int n = c > 2 ? atoi(v[2]) : 0, k = c > 3 ? atoi(v[3]) : 0;
	if (!strcmp(m, "one")) return one();
	if (!strcmp(m, "threads")) return threads(n, k);
	if (!strcmp(m, "forks")) return forks(n);
	if (!strcmp(m, "scm")) return scm();
	if (!strcmp(m, "exec")) return onexec(v[0], n);
	if (!strcmp(m, "execed")) return execed(n, k);
	if (!strcmp(m, "timer")) return timer(n);
	if (!strcmp(m, "fault")) return fault();
	if (!strcmp(m, "stats")) return stats();
	if (!strcmp(m, "hostile")) return hostile();
	if (!strcmp(m, "orphan")) return orphan();
	if (!strcmp(m, "forever")) return forever(n);
	if (!strcmp(m, "leader")) return leader();
	if (!strcmp(m, "massacre")) return massacre(n);
	if (!strcmp(m, "unseen")) return unseen();
	if (!strcmp(m, "blocked")) return blocked();
	if (!strcmp(m, "interrupted")) return interrupted(n);
	if (!strcmp(m, "killed")) return killed();
	return 2;
}
