/*
 * What a program sees of the weaknesses that docs/findings.md lists. One line per
 * call: the finding, what was done, and the answer (0, a number, or an errno).
 *
 *   findings EDU EXPORTER REGION NVME [last]   (addresses such as 0000:01:00.0)
 *
 * With `last` also what leaves the machine unusable until its next boot (N24).
 *
 * The structures are declared here, as the headers of Linux 7.3 have them, so
 * that older headers do.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define IOCTL(n) _IO(';', n)
#define VFIO(n) _IO(';', 100 + (n))

struct ioas_alloc { uint32_t size, flags, out_id; };
struct ioas_map_file { uint32_t size, flags, ioas; int32_t fd; uint64_t start, length, iova; };
struct ioas_copy { uint32_t size, flags, dst, src; uint64_t length, dst_iova, src_iova; };
struct ioas_unmap { uint32_t size, ioas; uint64_t iova, length; };
struct hwpt_alloc { uint32_t size, flags, dev, pt, out_id, reserved, type, len; uint64_t uptr; uint32_t fault, reserved2; };
struct destroy { uint32_t size, id; };
struct bind { uint32_t argsz, flags; int32_t iommufd; uint32_t out_id; uint64_t token; };
struct attach { uint32_t argsz, flags, pt, pasid; };
struct detach { uint32_t argsz, flags, pasid; };
struct region { uint32_t argsz, flags, index, cap; uint64_t size, offset; };
struct export { uint32_t argsz, fflags, region, open_flags, flags, nr; uint64_t offset, length; };
struct feature { uint32_t argsz, flags; int32_t eventfd; uint32_t reserved; };
struct hot_reset { uint32_t argsz, flags, count; };

enum { FIXED = 1, WRITE = 2, READ = 4, GET = 1 << 16, SET = 1 << 17 };
enum { ENTRY = 3, ENTRY_WAKEUP = 4, EXIT = 5, DMA_BUF = 11 };

static const char *finding;
static char *edu_bdf, *exp_bdf, *nvme_bdf;
static int region;

static long say(const char *what, long r)
{
	if (r < 0)
		printf("%s: %s = %s\n", finding, what, strerrorname_np(errno));
	else
		printf("%s: %s = %ld\n", finding, what, r);
	fflush(stdout);
	return r;
}

/* The number of a descriptor says nothing. */
static int fd(const char *what, int r)
{
	say(what, r < 0 ? r : 0);
	return r;
}

static int cdev(const char *bdf)
{
	char path[300];
	struct dirent *e;
	int r = -1;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", bdf);
	DIR *d = opendir(path);
	while (d && (e = readdir(d)))
		if (!strncmp(e->d_name, "vfio", 4)) {
			snprintf(path, sizeof(path), "/dev/vfio/devices/%s", e->d_name);
			r = open(path, O_RDWR);
			break;
		}
	if (d)
		closedir(d);
	return r;
}

static int bind_to(int dev, int ifd, uint32_t *id)
{
	struct bind b = { .argsz = 16, .iommufd = ifd };
	int r = ioctl(dev, VFIO(18), &b);

	if (id)
		*id = b.out_id;
	return r;
}

static uint32_t ioas_of(int ifd)
{
	struct ioas_alloc a = { .size = sizeof(a) };

	return ioctl(ifd, IOCTL(0x81), &a) ? 0 : a.out_id;
}

static int attach_to(int dev, uint32_t pt)
{
	struct attach a = { .argsz = 12, .pt = pt };

	return ioctl(dev, VFIO(19), &a);
}

static uint64_t offset_of(int dev, int index)
{
	struct region r = { .argsz = sizeof(r), .index = index };

	return ioctl(dev, VFIO(8), &r) ? 0 : r.offset;
}

static int command(int dev, uint16_t value)
{
	return pwrite(dev, &value, 2, offset_of(dev, 7) + 4);
}

static int exported(int dev, int flags)
{
	struct export e = { .argsz = sizeof(e), .fflags = GET | DMA_BUF, .region = region, .open_flags = flags, .nr = 1, .length = 0x1000 };

	return ioctl(dev, VFIO(17), &e);
}

static int low_power(int dev, int how, int eventfd)
{
	struct feature f = { .argsz = how == ENTRY_WAKEUP ? 16 : 8, .flags = SET | how, .eventfd = eventfd };

	return ioctl(dev, VFIO(17), &f);
}

static int map(int ifd, uint32_t ioas, int file, uint64_t iova)
{
	struct ioas_map_file m = { .size = sizeof(m), .flags = FIXED | WRITE | READ, .ioas = ioas, .fd = file, .length = 0x1000, .iova = iova };

	return ioctl(ifd, IOCTL(0x8f), &m);
}

/* Bytes unmapped. */
static long unmap(int ifd, uint32_t ioas, uint64_t iova)
{
	struct ioas_unmap u = { .size = sizeof(u), .ioas = ioas, .iova = iova, .length = 0x1000 };

	return ioctl(ifd, IOCTL(0x86), &u) ? -1 : (long)u.length;
}

static int destroyed(int ifd, uint32_t id)
{
	struct destroy d = { .size = sizeof(d), .id = id };

	return ioctl(ifd, IOCTL(0x80), &d);
}

struct world {
	int ifd, edu, dev;
	uint32_t edu_id, id, ioas;
	int buffer;
};

/* Both devices on one address space, and the start of the BAR exported. */
static struct world begin(const char *what, const char *bdf)
{
	struct world w = { .ifd = open("/dev/iommu", O_RDWR), .edu = cdev(edu_bdf), .dev = cdev(bdf) };

	finding = what;
	if (bind_to(w.edu, w.ifd, &w.edu_id) || bind_to(w.dev, w.ifd, &w.id) || !(w.ioas = ioas_of(w.ifd)) || attach_to(w.edu, w.ioas) ||
	    attach_to(w.dev, w.ioas)) {
		say("set up", -1);
		exit(1);
	}
	command(w.edu, 6);
	command(w.dev, 2);
	w.buffer = exported(w.dev, O_RDWR);
	return w;
}

static void end(struct world *w)
{
	close(w->buffer);
	close(w->dev);
	close(w->edu);
	close(w->ifd);
}

/* Runtime suspend is a worker's. */
static void settle(void)
{
	usleep(200000);
}

static void n1(void)
{
	struct world w = begin("N1", exp_bdf);
	uint16_t on = 2;

	say("LOW_POWER_ENTRY", low_power(w.dev, ENTRY, 0));
	settle();
	say("MAP_FILE in low power", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	say("COMMAND.MEM on, in low power", pwrite(w.dev, &on, 2, offset_of(w.dev, 7) + 4));
	settle();
	say("MAP_FILE after that", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	say("UNMAP", unmap(w.ifd, w.ioas, 0x1000000));
	say("LOW_POWER_ENTRY again", low_power(w.dev, ENTRY, 0));
	say("MAP_FILE after that", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	say("VFIO_DEVICE_RESET", ioctl(w.dev, VFIO(11)));
	settle();
	say("MAP_FILE after that", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	int late = fd("export in low power", exported(w.dev, O_RDWR));
	settle();
	say("MAP_FILE of that", map(w.ifd, w.ioas, late, 0x2000000));
	close(late);
	end(&w);
}

static void n2(void)
{
	struct world w = begin("N2", exp_bdf);
	int event = eventfd(0, EFD_NONBLOCK);
	uint64_t count = 0;
	uint32_t bar;

	say("LOW_POWER_ENTRY_WITH_WAKEUP", low_power(w.dev, ENTRY_WAKEUP, event));
	settle();
	offset_of(w.dev, 0);
	settle();
	say("read the eventfd", read(event, &count, 8));
	say("pread of the BAR", pread(w.dev, &bar, 4, offset_of(w.dev, region)));
	say("MAP_FILE though the device is awake", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	say("LOW_POWER_EXIT", low_power(w.dev, EXIT, 0));
	say("MAP_FILE after that", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	close(event);
	end(&w);
}

/* 1 when what the edu writes to `iova` lands in the BAR. */
static int lands(struct world *w, volatile uint8_t *edu, volatile uint32_t *memory, uint64_t iova)
{
	static uint32_t pattern = 0x600d0000;
	uint32_t got = 0;

	memory[0] = ++pattern;
	for (int step = 0; step < 2; step++) {
		*(volatile uint64_t *)(edu + 0x80) = step ? 0x40000 : 0x800000;
		*(volatile uint64_t *)(edu + 0x88) = step ? iova : 0x40000;
		*(volatile uint64_t *)(edu + 0x90) = 4;
		*(volatile uint32_t *)(edu + 0x98) = step ? 3 : 1;
		while (*(volatile uint32_t *)(edu + 0x98) & 1)
			usleep(1000);
	}
	pread(w->dev, &got, 4, offset_of(w->dev, region));
	return got == pattern;
}

static void n3(void)
{
	int was = region;
	region = 4;
	struct world w = begin("N3", nvme_bdf);
	struct hot_reset reset = { .argsz = sizeof(reset) };
	uint32_t one = 1;
	int memfd = memfd_create("memory", 0);

	/* The NVMe's memory region answers only while it is enabled, which a reset ends. */
	pwrite(w.dev, &one, 4, offset_of(w.dev, 0) + 0xe04);
	if (ftruncate(memfd, 0x1000))
		exit(1);
	volatile uint32_t *memory = mmap(0, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	volatile uint8_t *edu = mmap(0, 0x100000, PROT_READ | PROT_WRITE, MAP_SHARED, w.edu, offset_of(w.edu, 0));
	say("MAP_FILE of memory", map(w.ifd, w.ioas, memfd, 0x800000));
	say("MAP_FILE", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	say("DMA lands", lands(&w, edu, memory, 0x1000000));
	say("VFIO_DEVICE_PCI_HOT_RESET", ioctl(w.dev, VFIO(13), &reset));
	pwrite(w.dev, &one, 4, offset_of(w.dev, 0) + 0xe04);
	say("DMA lands after the reset that failed", lands(&w, edu, memory, 0x1000000));
	say("MAP_FILE again", map(w.ifd, w.ioas, w.buffer, 0x2000000));
	say("DMA lands there", lands(&w, edu, memory, 0x2000000));
	munmap((void *)memory, 0x1000);
	munmap((void *)edu, 0x100000);
	close(memfd);
	end(&w);
	region = was;
}

static void n6(void)
{
	struct world w = begin("N6", exp_bdf);
	uint32_t other = ioas_of(w.ifd);
	struct ioas_copy copy = { .size = sizeof(copy), .flags = FIXED | WRITE | READ, .dst = other, .src = w.ioas,
				  .length = 0x1000, .dst_iova = 0x1000000, .src_iova = 0x1000000 };
	struct hwpt_alloc hwpt = { .size = sizeof(hwpt), .dev = w.edu_id, .pt = w.ioas };

	say("MAP_FILE", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	say("COMMAND.MEM off", command(w.dev, 0));
	say("COPY of the dead area", ioctl(w.ifd, IOCTL(0x83), &copy));
	say("HWPT_ALLOC of the address space", ioctl(w.ifd, IOCTL(0x89), &hwpt));
	say("attach to the copy's address space", attach_to(w.edu, other));
	say("UNMAP of the dead area", unmap(w.ifd, w.ioas, 0x1000000));
	end(&w);
}

static void n12(void)
{
	struct world w = begin("N12", exp_bdf);
	int readonly = fd("export O_RDONLY", exported(w.dev, O_RDONLY));

	say("MAP_FILE of it, writeable", map(w.ifd, w.ioas, readonly, 0x1000000));
	close(readonly);
	end(&w);
}

static void n21(void)
{
	struct world w = begin("N21", exp_bdf);

	say("MAP_FILE", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	say("COMMAND.MEM off", command(w.dev, 0));
	say("COMMAND.MEM on", command(w.dev, 2));
	say("MAP_FILE to the dead area's place", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	say("UNMAP of the dead area", unmap(w.ifd, w.ioas, 0x1000000));
	say("MAP_FILE to its place", map(w.ifd, w.ioas, w.buffer, 0x1000000));
	end(&w);
}

static void n25(void)
{
	struct world w = begin("N25", exp_bdf);
	struct attach a = { .argsz = sizeof(a), .flags = 1, .pt = ioas_of(w.ifd) };
	struct detach plain = { .argsz = 8 }, d = { .argsz = sizeof(d), .flags = 1 };
	uint32_t ioas = a.pt;

	say("DETACH", ioctl(w.dev, VFIO(20), &plain));
	say("ATTACH of PASID 0", ioctl(w.dev, VFIO(19), &a));
	say("plain ATTACH", attach_to(w.dev, ioas));
	say("plain DETACH", ioctl(w.dev, VFIO(20), &plain));
	say("DESTROY of the IOAS", destroyed(w.ifd, ioas));
	say("DETACH of PASID 0", ioctl(w.dev, VFIO(20), &d));
	say("DESTROY of the IOAS", destroyed(w.ifd, ioas));
	d.pasid = 5;
	say("DETACH of a PASID that was never attached", ioctl(w.dev, VFIO(20), &d));
	end(&w);
}

/* Last: what it leaves behind stays until the next boot. */
static void n24(void)
{
	int status, pipes[2];

	finding = "N24";
	if (!fork()) {
		int ifd = open("/dev/iommu", O_RDWR), dev = cdev(exp_bdf), null = open("/dev/null", O_RDWR);
		uint32_t ioas = ioas_of(ifd);

		if (pipe(pipes))
			exit(1);
		say("BIND", bind_to(dev, ifd, NULL));
		say("MAP_FILE of a pipe", map(ifd, ioas, pipes[0], 0x1000000));
		say("MAP_FILE of /dev/null", map(ifd, ioas, null, 0x2000000));
		say("MAP_FILE of the device", map(ifd, ioas, dev, 0x3000000));
		exit(0);
	}
	wait(&status);
	settle();
	int ifd = open("/dev/iommu", O_RDWR), dev = cdev(exp_bdf);
	say("BIND after the process has ended", bind_to(dev, ifd, NULL));
}

int main(int argc, char **argv)
{
	if (argc < 5) {
		fprintf(stderr, "usage: findings EDU EXPORTER REGION NVME [last]\n");
		return 2;
	}
	edu_bdf = argv[1];
	exp_bdf = argv[2];
	region = atoi(argv[3]);
	nvme_bdf = argv[4];
	n1();
	n2();
	n3();
	n6();
	n12();
	n21();
	n25();
	if (argc == 6)
		n24();
	return 0;
}
