// A program that maps the pages of a virtual IOMMU, one line for each thing seen.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CMD(nr) (0x3b << 8 | (nr))
#define DESTROY CMD(0x80)
#define IOAS_ALLOC CMD(0x81)
#define HWPT_ALLOC CMD(0x89)
#define VIOMMU_ALLOC CMD(0x90)
#define TEST CMD(0xa0)

static int fd;
static uint32_t device, parent;

static const char *err(long r) { return r < 0 ? strerrorname_np(errno) : "ok"; }
static const char *mapped(void *p) { return p == MAP_FAILED ? strerrorname_np(errno) : "ok"; }
static void must(int r, const char *what) { if (r) { printf("%s: %s\n", what, strerrorname_np(errno)); exit(1); } }

static void setup(void)
{
	fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	struct { uint32_t size, flags, id; } ioas = { sizeof ioas };
	must(ioctl(fd, IOAS_ALLOC, &ioas), "IOAS_ALLOC");
	struct { uint32_t size, op, id, reserved, stdev, hwpt, idev; char rest[64]; } mock = { sizeof mock, 2, ioas.id };
	mock.size = 72;
	must(ioctl(fd, TEST, &mock), "MOCK_DOMAIN");
	device = mock.idev;
	struct { uint32_t size, flags, dev, pt, id, reserved, type, len; uint64_t data; uint32_t fault, reserved2; } hwpt = { sizeof hwpt, 1, device, ioas.id };
	must(ioctl(fd, HWPT_ALLOC, &hwpt), "HWPT_ALLOC");
	parent = hwpt.id;
}

static uint64_t offset, length;
static uint32_t viommu(uint32_t word)
{
	struct { uint32_t in, out; uint64_t offset, length; } data = { word };
	struct { uint32_t size, flags, type, dev, hwpt, id, len, reserved; uint64_t data; } cmd = { sizeof cmd, 0, 0xdeadbeef, device, parent, 0, sizeof data, 0, (uintptr_t)&data };
	must(ioctl(fd, VIOMMU_ALLOC, &cmd), "VIOMMU_ALLOC");
	offset = data.offset;
	length = data.length;
	return cmd.id;
}
static long destroy(uint32_t id)
{
	struct { uint32_t size, id; } cmd = { sizeof cmd, id };
	return ioctl(fd, DESTROY, &cmd);
}
static volatile uint32_t *map(void *at, int flags) { return mmap(at, length, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, offset); }

int main(void)
{
	setvbuf(stdout, 0, _IONBF, 0);
	setup();
	uint32_t id = viommu(0xbeef);
	volatile uint32_t *a = map(0, 0), *b = map(0, 0);
	printf("map: %s %s\n", mapped((void *)a), mapped((void *)b));
	printf("word: %x\n", a[0]);
	a[1025] = 77;
	printf("through the other mapping: %u\n", b[1025]);
	printf("destroy: %s\n", err(destroy(id)));
	munmap((void *)b, length);
	munmap((void *)a, 4096);
	printf("destroy with a page of it mapped: %s\n", err(destroy(id)));

	int pipes[2];
	must(pipe(pipes), "pipe");
	pid_t child = fork();
	if (child == 0) {
		char c;
		close(pipes[1]);
		_exit(read(pipes[0], &c, 1));
	}
	munmap((void *)a, length);
	printf("destroy while a child has it mapped: %s\n", err(destroy(id)));
	close(pipes[1]);
	waitpid(child, 0, 0);
	printf("destroy after that: %s\n", err(destroy(id)));
	printf("map after that: %s\n", mapped((void *)map(0, 0)));

	id = viommu(0xcafe);
	void *taken = mmap(0, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	printf("map where something is: %s\n", mapped((void *)map(taken, MAP_FIXED_NOREPLACE)));
	printf("destroy what was never mapped: %s\n", err(destroy(id)));

	id = viommu(0xf00d);
	a = map(0, 0);
	printf("again: %x %u\n", a[0], a[1025]);
	uint32_t second = viommu(0xf11d);
	b = map(0, 0);
	printf("a second one: %x %x\n", a[0], b[0]);
	munmap((void *)a, length);
	printf("destroy each: %s %s\n", err(destroy(id)), err(destroy(second)));
	close(fd);
	b[2000] = 5;
	printf("after close: %x %u\n", b[0], b[2000]);
	return 0;
}
