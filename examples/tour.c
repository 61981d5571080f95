// The tour's work as a plain VFIO/iommufd program: nothing in it knows of barlink.
//
//   cc -O1 -Wall -o tour tour.c
//   npx barlink run -- ./tour 0000:01:00.0 0000:05:00.0
//
// The first device is an `edu` DMA engine, the second an NVMe controller with a persistent memory region in BAR 4.
// The structures are written out because few distributions ship headers that have them all.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define NR(n) _IO(';', (n))
#define DEVICE_GET_REGION_INFO NR(108)
#define DEVICE_RESET NR(111)
#define DEVICE_FEATURE NR(117)
#define DEVICE_BIND NR(118)
#define DEVICE_ATTACH NR(119)
#define IOAS_ALLOC NR(0x81)
#define IOAS_UNMAP NR(0x86)
#define IOAS_MAP_FILE NR(0x8f)
#define FEATURE_GET_DMA_BUF ((1u << 16) | 11)
enum { FIXED = 1, WRITEABLE = 2, READABLE = 4 };

struct bind { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; uint64_t token_uuid_ptr; };
struct attach { uint32_t argsz, flags, pt_id, pasid; };
struct region { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct dma_buf { uint32_t argsz, flags, region_index, open_flags, buf_flags, nr_ranges; uint64_t offset, length; };
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct map_file { uint32_t size, flags, ioas_id; int32_t fd; uint64_t start, length, iova; };
struct unmap { uint32_t size, ioas_id; uint64_t iova, length; };

#define RAM_IOVA 0x1000000ull
#define BAR_IOVA 0x2000000ull
#define LENGTH 0x200000ull
#define BYTES 256

static void fail(const char *what) { perror(what); exit(1); }
static void must(int ok, const char *what) { printf("%s %s\n", ok ? "ok  " : "FAIL", what); if (!ok) exit(1); }

static int open_device(const char *address)
{
	char path[512];
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", address);
	DIR *d = opendir(path);
	struct dirent *e;
	int fd = -1;
	while (d && (e = readdir(d)))
		if (!strncmp(e->d_name, "vfio", 4)) {
			snprintf(path, sizeof path, "/dev/vfio/devices/%s", e->d_name);
			fd = open(path, O_RDWR | O_CLOEXEC);
		}
	if (d) closedir(d);
	if (fd < 0) fail(address);
	return fd;
}

static struct region region(int fd, uint32_t index)
{
	struct region r = { .argsz = sizeof r, .index = index };
	if (ioctl(fd, DEVICE_GET_REGION_INFO, &r)) fail("VFIO_DEVICE_GET_REGION_INFO");
	return r;
}

static void put(int fd, uint32_t index, uint64_t at, const void *value, size_t n)
{
	if (pwrite(fd, value, n, region(fd, index).offset + at) != (ssize_t)n) fail("pwrite");
}

static void get(int fd, uint32_t index, uint64_t at, void *value, size_t n)
{
	if (pread(fd, value, n, region(fd, index).offset + at) != (ssize_t)n) fail("pread");
}

static void command(int fd, uint16_t set, uint16_t clear)
{
	uint16_t c;
	get(fd, 7, 4, &c, 2);
	c = (c | set) & ~clear;
	put(fd, 7, 4, &c, 2);
}

// RAM to the engine's buffer, then from there to `iova`.
static void dma(int edu, uint64_t iova)
{
	for (int out = 0; out < 2; out++) {
		uint64_t regs[3] = { out ? 0x40000 : RAM_IOVA, out ? iova : 0x40000, BYTES };
		for (int i = 0; i < 3; i++) put(edu, 0, 0x80 + 8 * i, &regs[i], 8);
		uint32_t cmd = 1 | out << 1;
		put(edu, 0, 0x98, &cmd, 4);
		for (int i = 0; i < 3000 && (cmd & 1); i++) { usleep(1000); get(edu, 0, 0x98, &cmd, 4); }
		must(!(cmd & 1), out ? "the engine wrote" : "the engine read");
	}
}

static int map_file(int iommufd, uint32_t ioas, int fd, uint64_t length, uint64_t iova)
{
	struct map_file m = { sizeof m, FIXED | WRITEABLE | READABLE, ioas, fd, 0, length, iova };
	return ioctl(iommufd, IOAS_MAP_FILE, &m) ? -errno : 0;
}

int main(int argc, char **argv)
{
	if (argc != 3) { fprintf(stderr, "usage: %s EDU NVME (PCI addresses)\n", argv[0]); return 2; }
	int iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (iommufd < 0) fail("/dev/iommu");
	int edu = open_device(argv[1]), nvme = open_device(argv[2]), devices[] = { edu, nvme };
	struct ioas_alloc a = { .size = sizeof a };
	for (int i = 0; i < 2; i++) {
		struct bind b = { .argsz = sizeof b, .iommufd = iommufd };
		if (ioctl(devices[i], DEVICE_BIND, &b)) fail("VFIO_DEVICE_BIND_IOMMUFD");
	}
	if (ioctl(iommufd, IOAS_ALLOC, &a)) fail("IOMMU_IOAS_ALLOC");
	for (int i = 0; i < 2; i++) {
		struct attach t = { .argsz = sizeof t, .pt_id = a.out_ioas_id };
		if (ioctl(devices[i], DEVICE_ATTACH, &t)) fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
	}
	command(edu, 2 | 4, 0);
	command(nvme, 2, 0);
	uint32_t one = 1;
	put(nvme, 0, 0xe04, &one, 4);

	int memfd = memfd_create("ram", MFD_CLOEXEC);
	if (memfd < 0 || ftruncate(memfd, 0x100000)) fail("memfd");
	uint8_t *ram = mmap(0, 0x100000, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0), seen[BYTES], zero[BYTES] = { 0 };
	for (int i = 0; i < BYTES; i++) ram[i] = i * 37 + 11;
	must(map_file(iommufd, a.out_ioas_id, memfd, 0x100000, RAM_IOVA) == 0, "RAM is mapped");

	struct dma_buf f = { .argsz = sizeof f, .flags = FEATURE_GET_DMA_BUF, .region_index = 4, .open_flags = O_RDWR | O_CLOEXEC, .nr_ranges = 1, .length = region(nvme, 4).size };
	int buffer = ioctl(nvme, DEVICE_FEATURE, &f);
	must(buffer >= 0, "BAR 4 is a dma-buf");
	must(map_file(iommufd, a.out_ioas_id, buffer, LENGTH, BAR_IOVA) == 0, "it is mapped over the private interconnect");
	dma(edu, BAR_IOVA);
	get(nvme, 4, 0, seen, BYTES);
	must(!memcmp(seen, ram, BYTES), "every byte landed in the peer's BAR");

	if (ioctl(nvme, DEVICE_RESET)) fail("VFIO_DEVICE_RESET");
	put(nvme, 0, 0xe04, &one, 4);
	put(nvme, 4, 0, zero, BYTES);
	dma(edu, BAR_IOVA);
	get(nvme, 4, 0, seen, BYTES);
	must(!memcmp(seen, zero, BYTES), "after a reset the same DMA goes nowhere");
	command(nvme, 0, 2);
	must(map_file(iommufd, a.out_ioas_id, buffer, LENGTH, BAR_IOVA + LENGTH) == -ENODEV, "with memory off the buffer cannot be mapped: ENODEV");
	command(nvme, 2, 0);
	struct unmap u = { sizeof u, a.out_ioas_id, BAR_IOVA, LENGTH };
	must(ioctl(iommufd, IOAS_UNMAP, &u) == 0 && u.length == LENGTH, "the dead area is unmapped");
	must(map_file(iommufd, a.out_ioas_id, buffer, LENGTH, BAR_IOVA) == 0, "and mapped again");
	dma(edu, BAR_IOVA);
	get(nvme, 4, 0, seen, BYTES);
	must(!memcmp(seen, ram, BYTES), "DMA works again");
	return 0;
}
