// An ordinary VFIO program: what it does with BARs, config space and interrupts, one line for each thing seen.
// The ioctls' numbers come from the command line of the compiler, as V_NAME.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static sigjmp_buf env;
static void on_bus(int sig) { (void)sig; siglongjmp(env, 1); }
static const char *touch(volatile uint64_t *p)
{
	static char text[32];
	if (sigsetjmp(env, 1)) return "SIGBUS";
	snprintf(text, sizeof text, "0x%llx", (unsigned long long)*p);
	return text;
}
static double now_us(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e6 + t.tv_nsec / 1e3; }
static void nap_us(long us) { struct timespec t = { us / 1000000, us % 1000000 * 1000 }; nanosleep(&t, 0); }
static const char *err(long r) { return r < 0 ? strerrorname_np(errno) : "ok"; }

static int iommufd;
static int device(int n)
{
	char path[64];
	snprintf(path, sizeof path, "/dev/vfio/devices/vfio%d", n);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct { uint32_t argsz, flags; int32_t iommufd; uint32_t devid; } b = { sizeof b, 0, iommufd, 0 };
	if (fd < 0 || ioctl(fd, V_BIND_IOMMUFD, &b)) { printf("cannot have %s: %s\n", path, strerrorname_np(errno)); exit(1); }
	return fd;
}
static uint64_t region(int fd, int index, uint64_t *size)
{
	struct { uint32_t argsz, flags, index, cap; uint64_t size, offset; } i = { .argsz = sizeof i, .index = index };
	if (ioctl(fd, V_GET_REGION_INFO, &i)) return 0;
	if (size) *size = i.size;
	return i.offset;
}
static void command(int fd, int set, int clear)
{
	uint64_t at = region(fd, 7, 0) + 4;
	uint16_t c = 0;
	if (pread(fd, &c, 2, at) != 2) puts("config read failed");
	c = (c & ~clear) | set;
	if (pwrite(fd, &c, 2, at) != 2) puts("config write failed");
}
static void *map(int fd, uint64_t offset, uint64_t length, int flags) { return mmap(0, length, PROT_READ | PROT_WRITE, flags, fd, offset); }
static const char *mapped(void *p) { if (p == MAP_FAILED) return strerrorname_np(errno); return "ok"; }

static void memory(void)
{
	int fd = device(2);
	uint64_t size, at = region(fd, 2, &size), value = 0;
	command(fd, 2, 0);
	printf("offset %llx size %llx\n", (unsigned long long)at, (unsigned long long)size);
	printf("map past the end: %s\n", mapped(map(fd, at + size - 4096, 8192, MAP_SHARED)));
	printf("map private: %s\n", mapped(map(fd, at, 4096, MAP_PRIVATE)));
	printf("map private at offset 0: %s\n", mapped(map(fd, 0, 4096, MAP_PRIVATE)));
	printf("map at offset 0: %s\n", mapped(map(fd, 0, 4096, MAP_SHARED)));
	printf("map config space: %s\n", mapped(map(fd, region(fd, 7, 0), 4096, MAP_SHARED)));
	volatile uint64_t *bar = map(fd, at, size, MAP_SHARED), *part = map(fd, at + 0x100000, 0x2000, MAP_SHARED);
	printf("ftruncate: %s\n", err(ftruncate(fd, 0)));
	printf("fallocate: %s\n", err(fallocate(fd, 3, at, 4096)));
	printf("map: %s %s\n", mapped((void *)bar), mapped((void *)part));
	part[1] = 0x1122334455667788;
	printf("pread %zd: ", pread(fd, &value, 8, at + 0x100008));
	printf("%llx\n", (unsigned long long)value);
	value = 0xabcdef;
	printf("pwrite %zd: ", pwrite(fd, &value, 8, at + 0x100010));
	printf("%s\n", touch(&part[2]));
	uint8_t a = 0, b[4] = { 0 };
	struct iovec v[2] = { { &a, 1 }, { b, 4 } };
	printf("preadv %zd: ", preadv(fd, v, 2, at + 0x100008));
	printf("%x %x\n", a, b[0]);
	command(fd, 0, 2);
	printf("without memory: %s %s\n", touch(&bar[1]), touch(&part[1]));
	printf("pread without memory: %s\n", err(pread(fd, &value, 8, at)));
	command(fd, 2, 0);
	printf("with memory: %s %s\n", touch(&bar[0x100008 / 8]), touch(&part[1]));
	printf("reset: %s, then %s\n", err(ioctl(fd, V_RESET)), touch(&part[1]));
	fflush(stdout);
	int pid = fork();
	if (pid == 0) { part[1] = 5; command(fd, 0, 2); _exit(0); }
	waitpid(pid, 0, 0);
	printf("after a child turned it off: %s\n", touch(&bar[0]));
	command(fd, 2, 0);
	printf("what the child stored: %s\n", touch(&part[1]));
	close(fd);
	printf("after close: %s\n", touch(&part[1]));
	printf("grow: %s\n", mapped(mremap((void *)part, 0x2000, 0x4000, MREMAP_MAYMOVE)));
	munmap((void *)bar, size);
	munmap((void *)part, 0x2000);
	fd = device(2);
	command(fd, 2, 0);
	printf("opened again: %zd ", pread(fd, &value, 8, region(fd, 2, 0) + 0x100008));
	printf("%llx\n", (unsigned long long)value);
	close(fd);
}

static int set_irqs(int fd, int index, int flags, int start, int count, int eventfd)
{
	struct { uint32_t argsz, flags, index, start, count; int32_t fd; } s = { 20, flags, index, start, count, eventfd };
	if (flags & 4) s.argsz = 24;
	return ioctl(fd, V_SET_IRQS, &s);
}
static long fired(int e, int ms)
{
	struct pollfd p = { e, POLLIN, 0 };
	uint64_t n = 0;
	if (poll(&p, 1, ms) != 1 || read(e, &n, 8) != 8) return 0;
	return n;
}

static void interrupts(void)
{
	int fd = device(1), e = eventfd(0, EFD_CLOEXEC), unmask = eventfd(0, EFD_CLOEXEC);
	uint64_t at = region(fd, 0, 0);
	volatile uint32_t *edu = map(fd, at, 4096, MAP_SHARED);
	uint32_t one = 1, v;
	command(fd, 6, 0);
	printf("MSI to an eventfd: %s\n", err(set_irqs(fd, 1, 4 | 32, 0, 1, e)));
	edu[0x60 / 4] = 1;
	printf("raised through the mapping: %ld\n", fired(e, 2000));
	pwrite(fd, &one, 4, at + 0x64);
	pwrite(fd, &one, 4, at + 0x60);
	printf("raised by pwrite: %ld\n", fired(e, 2000));
	pread(fd, &v, 4, at + 0x24);
	printf("status: %x %x\n", v, edu[0x24 / 4]);
	pwrite(fd, &one, 4, at + 0x64);
	set_irqs(fd, 1, 1 | 32, 0, 0, -1);
	printf("INTx to an eventfd: %s\n", err(set_irqs(fd, 0, 4 | 32, 0, 1, e)));
	printf("and one to unmask: %s\n", err(set_irqs(fd, 0, 4 | 16, 0, 1, unmask)));
	pwrite(fd, &one, 4, at + 0x60);
	printf("raised: %ld\n", fired(e, 2000));
	uint64_t n = 1;
	write(unmask, &n, 8);
	printf("unmasked while it is up: %ld\n", fired(e, 2000));
	pwrite(fd, &one, 4, at + 0x64);
	write(unmask, &n, 8);
	printf("unmasked when it is down: %ld\n", fired(e, 200));
	pwrite(fd, &one, 4, at + 0x60);
	printf("raised again: %ld\n", fired(e, 2000));
	set_irqs(fd, 0, 1 | 32, 0, 0, -1);
	struct { uint32_t argsz, flags; uint64_t offset, data; int32_t fd; uint32_t pad; } io = { sizeof io, 4, at + 4, 0x77, unmask, 0 };
	printf("ioeventfd: %s\n", err(ioctl(fd, V_IOEVENTFD, &io)));
	write(unmask, &n, 8);
	for (int i = 0; i < 2000 && edu[1] != ~0x77u; i++) nap_us(1000);
	printf("wrote: %x\n", edu[1]);
	close(fd);
}

// Several vectors, the kernel's own lines, and a child that reads what its parent's eventfd counted.
static void vectors(void)
{
	int fd = device(3), e[4];
	struct { uint32_t argsz, flags, index, start, count; int32_t fd[4]; } s = { 36, 4 | 32, 2, 0, 4, { 0 } };
	for (int i = 0; i < 4; i++) s.fd[i] = e[i] = eventfd(0, i == 2 ? EFD_CLOEXEC | EFD_SEMAPHORE : EFD_CLOEXEC | EFD_NONBLOCK);
	command(fd, 6, 0);
	printf("MSI-X to four eventfds: %s\n", err(ioctl(fd, V_SET_IRQS, &s)));
	printf("fire two: %s\n", err(set_irqs(fd, 2, 1 | 32, 1, 2, -1)));
	printf("counted: %ld %ld %ld %ld\n", fired(e[0], 0), fired(e[1], 0), fired(e[2], 0), fired(e[3], 0));
	struct { uint32_t argsz, flags, index, start, count; uint8_t on[4]; } t = { 24, 2 | 32, 2, 0, 4, { 1, 0, 1, 1 } };
	ioctl(fd, V_SET_IRQS, &t);
	ioctl(fd, V_SET_IRQS, &t);
	printf("three twice: %ld %ld %ld %ld %ld\n", fired(e[0], 0), fired(e[1], 0), fired(e[2], 0), fired(e[2], 0), fired(e[3], 0));
	printf("another vector: %s\n", err(set_irqs(fd, 2, 4 | 32, 9, 1, e[0])));
	set_irqs(fd, 2, 1 | 32, 9, 1, -1);
	printf("it fires: %ld\n", fired(e[0], 0));
	set_irqs(fd, 2, 4 | 32, 1, 1, -1);
	printf("one taken away: %s, %ld\n", err(set_irqs(fd, 2, 1 | 32, 1, 1, -1)), fired(e[1], 0));
	printf("not an eventfd: %s\n", err(set_irqs(fd, 2, 4 | 32, 2, 1, iommufd)));
	printf("not a descriptor: %s\n", err(set_irqs(fd, 2, 4 | 32, 2, 1, 999)));
	close(e[3]);
	printf("a closed one: %s\n", err(set_irqs(fd, 2, 1 | 32, 3, 1, -1)));
	fflush(stdout);
	int pid = fork();
	if (pid == 0) { set_irqs(fd, 2, 1 | 32, 0, 1, -1); _exit(0); }
	waitpid(pid, 0, 0);
	printf("fired by a child: %ld\n", fired(e[0], 0));
	printf("error line: %s\n", err(set_irqs(fd, 3, 4 | 32, 0, 1, e[1])));
	set_irqs(fd, 3, 1 | 32, 0, 1, -1);
	printf("it fires too: %ld\n", fired(e[1], 0));
	printf("request line: %s\n", err(set_irqs(fd, 4, 4 | 32, 0, 1, e[1])));
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		close(fd);
		int u = open("/sys/bus/pci/drivers/vfio-pci/unbind", O_WRONLY);
		_exit(write(u, "0000:03:00.0", 12) == 12 ? 0 : 1);
	}
	printf("asked to let go: %d\n", fired(e[1], 5000) > 0);
	close(fd);
	int status = -1;
	waitpid(pid, &status, 0);
	printf("unbound: %d\n", status);
}

// Registers, by calls alone.
static void registers(void)
{
	int fd = device(1);
	struct { uint32_t argsz, flags, index, cap; uint64_t size, offset; } i = { .argsz = sizeof i };
	ioctl(fd, V_GET_REGION_INFO, &i);
	printf("region flags: %x\n", i.flags);
	printf("map: %s\n", mapped(map(fd, i.offset, 4096, MAP_SHARED)));
	command(fd, 2, 0);
	uint32_t v = 5;
	pwrite(fd, &v, 4, i.offset + 8);
	pread(fd, &v, 4, i.offset + 0x20);
	while (v & 1) pread(fd, &v, 4, i.offset + 0x20);
	pread(fd, &v, 4, i.offset + 8);
	printf("factorial: %u\n", v);
	close(fd);
}

static int by_value(const void *a, const void *b) { double d = *(double *)a - *(double *)b; return d < 0 ? -1 : d > 0; }

// Stores, and how long until the device answers; `gap` microseconds before each.
static void latency(int n, long gap)
{
	int fd = device(1);
	uint64_t at = region(fd, 0, 0);
	volatile uint32_t *edu = map(fd, at, 1 << 20, MAP_SHARED);
	double *t = calloc(n, sizeof *t);
	command(fd, 2, 0);
	for (int i = 0; i < n; i++) {
		nap_us(gap);
		uint32_t v = 0x1000 + i;
		double start = now_us();
		edu[1] = v;
		while (edu[1] != ~v && now_us() - start < 3e6) nap_us(20);
		t[i] = now_us() - start;
	}
	qsort(t, n, sizeof *t, by_value);
	printf("latency_us %.0f %.0f %.0f\n", t[n / 2], t[n * 99 / 100], t[n - 1]);
	close(fd);
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_bus };
	sigaction(SIGBUS, &sa, 0);
	setvbuf(stdout, 0, _IOLBF, 0);
	iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (argc > 1 && !strcmp(argv[1], "memory")) memory();
	if (argc > 1 && !strcmp(argv[1], "registers")) registers();
	if (argc > 1 && !strcmp(argv[1], "vectors")) vectors();
	if (argc > 1 && !strcmp(argv[1], "interrupts")) interrupts();
	if (argc > 3 && !strcmp(argv[1], "latency")) latency(atoi(argv[2]), atol(argv[3]));
	return 0;
}
