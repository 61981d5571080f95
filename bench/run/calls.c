/*
 * The calls whose cost is measured, made by a plain program:
 *
 *   calls ioctl N          N times IOMMU_OPTION on /dev/iommu: 24 bytes in, 24 bytes out
 *   calls null N           the same ioctl on /dev/null, which has none: for a kernel or a tracer that does nothing
 *   calls files N FOLDER   opens and closes FOLDER/0 to FOLDER/99, N times in all
 *   calls memory N         N ioctls, then the resident memory of the parent process
 *
 * Answers with one line of numbers: nanoseconds, or kB.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

struct ioas_alloc {
	uint32_t size, flags, out_ioas_id;
};

struct option {
	uint32_t size, option_id;
	uint16_t op, reserved;
	uint32_t object_id;
	uint64_t val64;
};

#define IOAS_ALLOC _IO(';', 0x81)
#define OPTION _IO(';', 0x87)
#define OPTION_HUGE_PAGES 1
#define OP_GET 1
#define WARM_UP 2000

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void fail(const char *what)
{
	fprintf(stderr, "calls: %s: %s\n", what, strerror(errno));
	exit(1);
}

static struct option option = { .size = sizeof(option), .option_id = OPTION_HUGE_PAGES, .op = OP_GET };

/* Where the calls go; with an address space to ask about when the device is the real thing. */
static int device(const char *path, int real)
{
	struct ioas_alloc alloc = { .size = sizeof(alloc) };
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fail(path);
	if (real) {
		if (ioctl(fd, IOAS_ALLOC, &alloc))
			fail("IOMMU_IOAS_ALLOC");
		option.object_id = alloc.out_ioas_id;
		option.val64 = 7;
		if (ioctl(fd, OPTION, &option) || option.val64 != 1)
			fail("IOMMU_OPTION");
	}
	return fd;
}

static void ioctls(int fd, long n)
{
	uint64_t *times = malloc(n * sizeof(*times));
	long i;

	for (i = 0; i < WARM_UP; i++)
		ioctl(fd, OPTION, &option);
	for (i = 0; i < n; i++) {
		uint64_t from = now();

		ioctl(fd, OPTION, &option);
		times[i] = now() - from;
	}
	qsort(times, n, sizeof(*times), by_value);
	printf("%llu %llu %llu\n", (unsigned long long)times[n / 2], (unsigned long long)times[n - 1 - n / 100],
	       (unsigned long long)times[0]);
}

static void files(long n, const char *folder)
{
	char paths[100][4096];
	uint64_t from;
	long i;
	int fd;

	for (i = 0; i < 100; i++)
		snprintf(paths[i], sizeof(paths[i]), "%s/%ld", folder, i);
	from = now();
	for (i = 0; i < n; i++) {
		fd = open(paths[i % 100], O_RDONLY);
		if (fd < 0)
			fail(paths[i % 100]);
		close(fd);
	}
	printf("%llu\n", (unsigned long long)(now() - from));
}

static void memory(long n)
{
	char path[64], line[256];
	unsigned long rss = 0, peak = 0;
	int fd = device("/dev/iommu", 1);
	FILE *f;

	while (n-- > 0)
		ioctl(fd, OPTION, &option);
	snprintf(path, sizeof(path), "/proc/%d/status", getppid());
	f = fopen(path, "r");
	if (!f)
		fail(path);
	while (fgets(line, sizeof(line), f)) {
		sscanf(line, "VmRSS: %lu", &rss);
		sscanf(line, "VmHWM: %lu", &peak);
	}
	printf("%lu %lu\n", rss, peak);
}

int main(int argc, char **argv)
{
	long n = argc > 2 ? atol(argv[2]) : 0;

	if (n <= 0)
		return 2;
	if (!strcmp(argv[1], "ioctl"))
		ioctls(device("/dev/iommu", 1), n);
	else if (!strcmp(argv[1], "null"))
		ioctls(device("/dev/null", 0), n);
	else if (!strcmp(argv[1], "files") && argc > 3)
		files(n, argv[3]);
	else if (!strcmp(argv[1], "memory"))
		memory(n);
	else
		return 2;
	return 0;
}
