/*
 * Makes the calls of a program on a real Linux and prints its answers, one JSON object a line.
 *
 * The program is text, one call a line, written by `npm run conformance -- hostile --program FILE`; the same calls are made
 * on the embedded kernel. This file knows no structure: it lays the given bytes down and calls. Only the numbers of the
 * ioctls are looked up here, in the headers of the kernel.
 *
 *   gcc -O1 -static -Wall -isystem HEADERS/include -o hostile hostile.c     (HEADERS: make headers_install of Linux 7.3)
 *   ./hostile FILE edu=0000:01:00.0 ivshmem=0000:02:00.0 nvme=0000:03:00.0 > hostile-linux.jsonl
 *
 * The machine was QEMU 7.2 without KVM, as `machines/oracle.json` describes it, each device bound to vfio-pci; the variants
 * are `intel-iommu,x-scalable-mode=on` and `amd-iommu,intremap=on`, the latter with iommufd's allow_unsafe_interrupts for `amd`.
 *
 * A line is an operation, then words `name=value`, then ` # ` and what it is about:
 *
 *   section            a new process, with nothing open
 *   open/close/dup/memfd/eventfd/pipe/ioctl/read/write/pread/pwrite/lseek/mmap/poll/fstat/fcntl/ftruncate
 *
 * Memory of every process, in this order: `arena` 64 KiB, `guard` one page that cannot be touched, `ro` one page that can
 * only be read, another such guard, `big` 6 MiB. Before each call the arena is filled with 0xa5. Words of an ioctl:
 *
 *   fd=NUMBER|$name    cmd=NAME|0xNUMBER   at=PLACE    where the structure lies and what the third argument is
 *   hex=BYTES          the structure       v8=$name    32 bits at offset 8 are that number
 *   p16=PLACE          64 bits at offset 16 point there                     m4096=BYTES  bytes at that offset of the arena
 *   rep=N:BYTES        N times, after the structure                         save=$name@8 keeps 32 bits at offset 8 on success
 *   save=$name         keeps what the call returned
 *
 * PLACE: arena+N, guard-N, guard, ro, big, or a number.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/iommufd.h>
#include <linux/udmabuf.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARENA 0x10000UL
#define PAGE 0x1000UL
#define BIG 0x600000UL
#define WORDS 64
#define NAMES 64

static const struct {
	const char *name;
	unsigned long number;
} commands[] = {
#define C(x) { #x, x }
	C(IOMMU_DESTROY), C(IOMMU_IOAS_ALLOC), C(IOMMU_IOAS_ALLOW_IOVAS), C(IOMMU_IOAS_COPY), C(IOMMU_IOAS_IOVA_RANGES),
	C(IOMMU_IOAS_MAP), C(IOMMU_IOAS_UNMAP), C(IOMMU_OPTION), C(IOMMU_VFIO_IOAS), C(IOMMU_HWPT_ALLOC), C(IOMMU_GET_HW_INFO),
	C(IOMMU_HWPT_SET_DIRTY_TRACKING), C(IOMMU_HWPT_GET_DIRTY_BITMAP), C(IOMMU_HWPT_INVALIDATE), C(IOMMU_FAULT_QUEUE_ALLOC),
	C(IOMMU_IOAS_MAP_FILE), C(IOMMU_VIOMMU_ALLOC), C(IOMMU_VDEVICE_ALLOC), C(IOMMU_IOAS_CHANGE_PROCESS),
	C(IOMMU_VEVENTQ_ALLOC), C(IOMMU_HW_QUEUE_ALLOC), C(IOMMU_IOAS_NOIOMMU_GET_PA),
	C(VFIO_DEVICE_BIND_IOMMUFD), C(VFIO_DEVICE_ATTACH_IOMMUFD_PT), C(VFIO_DEVICE_DETACH_IOMMUFD_PT), C(VFIO_DEVICE_GET_INFO),
	C(VFIO_DEVICE_GET_REGION_INFO), C(VFIO_DEVICE_GET_IRQ_INFO), C(VFIO_DEVICE_SET_IRQS), C(VFIO_DEVICE_RESET),
	C(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO), C(VFIO_DEVICE_PCI_HOT_RESET), C(VFIO_DEVICE_FEATURE), C(VFIO_DEVICE_IOEVENTFD),
	C(VFIO_DEVICE_QUERY_GFX_PLANE), C(VFIO_GET_API_VERSION), C(VFIO_CHECK_EXTENSION), C(VFIO_GROUP_GET_DEVICE_FD),
	C(DMA_BUF_IOCTL_SYNC), C(DMA_BUF_SET_NAME_A), C(DMA_BUF_SET_NAME_B), C(DMA_BUF_IOCTL_EXPORT_SYNC_FILE),
	C(DMA_BUF_IOCTL_IMPORT_SYNC_FILE), C(UDMABUF_CREATE), C(UDMABUF_CREATE_LIST), C(DMA_HEAP_IOCTL_ALLOC),
#undef C
};

static uint8_t *memory;
static uint8_t before[ARENA];
static char *arg_devices[16];
static struct { char name[32]; long value; } names[NAMES];
static int nnames;

static void die(const char *what, const char *detail)
{
	fprintf(stderr, "hostile: %s: %s\n", what, detail);
	exit(2);
}

static void keep(const char *name, long value)
{
	for (int i = 0; i < nnames; i++)
		if (!strcmp(names[i].name, name)) {
			names[i].value = value;
			return;
		}
	if (nnames == NAMES || strlen(name) >= sizeof names[0].name)
		die("too many or too long names", name);
	strcpy(names[nnames].name, name);
	names[nnames++].value = value;
}

static long number(const char *s)
{
	if (s[0] != '$')
		return (long)strtoull(s, NULL, 0) * 1;
	for (int i = 0; i < nnames; i++)
		if (!strcmp(names[i].name, s))
			return names[i].value;
	return -1;
}

static long signed_number(const char *s)
{
	return s[0] == '-' ? strtol(s, NULL, 0) : number(s);
}

static uint64_t place(const char *s)
{
	static const struct { const char *name; uint64_t at; } places[] = {
		{ "arena", 0 }, { "guard", ARENA }, { "ro", ARENA + PAGE }, { "big", ARENA + 3 * PAGE },
	};
	for (unsigned i = 0; i < 4; i++) {
		size_t n = strlen(places[i].name);
		if (!strncmp(s, places[i].name, n))
			return (uint64_t)(uintptr_t)memory + places[i].at + (s[n] ? (uint64_t)strtoll(s + n, NULL, 0) : 0);
	}
	return strtoull(s, NULL, 0);
}

static size_t unhex(const char *s, uint8_t *out)
{
	size_t n = 0;
	for (; s[0] && s[1]; s += 2, n++) {
		unsigned v;
		sscanf(s, "%2x", &v);
		out[n] = (uint8_t)v;
	}
	return n;
}

static const char *word(char **w, const char *name)
{
	size_t n = strlen(name);
	for (; *w; w++)
		if (!strncmp(*w, name, n) && (*w)[n] == '=')
			return *w + n + 1;
	return NULL;
}

static const char *need(char **w, const char *name)
{
	const char *v = word(w, name);
	if (!v)
		die("a line lacks the word", name);
	return v;
}

static unsigned long command(const char *s)
{
	if (s[0] == '0')
		return strtoul(s, NULL, 0);
	for (unsigned i = 0; i < sizeof commands / sizeof *commands; i++)
		if (!strcmp(commands[i].name, s))
			return commands[i].number;
	die("unknown ioctl", s);
	return 0;
}

/* Bytes that fit into the memory at `at`; a structure may run into a guard. */
static size_t room(uint64_t at)
{
	uint64_t off = at - (uint64_t)(uintptr_t)memory;
	if (off < ARENA)
		return ARENA - off;
	if (off >= ARENA + PAGE && off < ARENA + 2 * PAGE)
		return ARENA + 2 * PAGE - off;
	if (off >= ARENA + 3 * PAGE && off < ARENA + 3 * PAGE + BIG)
		return ARENA + 3 * PAGE + BIG - off;
	return 0;
}

static uint8_t bytes[BIG];

static uint64_t lay(char **w)
{
	uint64_t at = place(need(w, "at"));
	const char *hex = word(w, "hex"), *rep = word(w, "rep");
	size_t n = hex ? unhex(hex, bytes) : 0;

	memset(memory, 0xa5, ARENA);
	for (char **p = w; *p; p++) {
		char *end;
		unsigned long off = strtoul(*p + 1, &end, 0);
		if (end == *p + 1 || *end != '=')
			continue;
		if ((*p)[0] == 'v') {
			uint32_t v = (uint32_t)signed_number(end + 1);
			memcpy(bytes + off, &v, 4);
		} else if ((*p)[0] == 'p') {
			uint64_t v = place(end + 1);
			memcpy(bytes + off, &v, 8);
		} else if ((*p)[0] == 'm') {
			if (end[1] == '$') {
				uint32_t v = (uint32_t)number(end + 1);
				memcpy(memory + off, &v, 4);
			} else
				unhex(end + 1, memory + off);
		}
	}
	if (rep) {
		char *colon;
		unsigned long count = strtoul(rep, &colon, 0);
		uint8_t one[64];
		size_t m = unhex(colon + 1, one);
		for (unsigned long i = 0; i < count && n + m <= BIG; i++, n += m)
			memcpy(bytes + n, one, m);
	}
	size_t fits = room(at);
	int ro = at - (uint64_t)(uintptr_t)memory - (ARENA + PAGE) < PAGE;
	if (ro)
		mprotect(memory + ARENA + PAGE, PAGE, PROT_READ | PROT_WRITE);
	memcpy((void *)(uintptr_t)at, bytes, n < fits ? n : fits);
	if (ro)
		mprotect(memory + ARENA + PAGE, PAGE, PROT_READ);
	memcpy(before, memory, ARENA);
	return at;
}

static int open_device(const char *name, int flags)
{
	char path[256];
	for (char **d = arg_devices; *d; d++) {
		size_t n = strlen(name);
		if (strncmp(*d, name, n) || (*d)[n] != '=')
			continue;
		snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", *d + n + 1);
		DIR *dir = opendir(path);
		struct dirent *e;
		char node[300] = "";
		while (dir && (e = readdir(dir)))
			if (!strncmp(e->d_name, "vfio", 4))
				snprintf(node, sizeof node, "/dev/vfio/devices/%s", e->d_name);
		if (dir)
			closedir(dir);
		return open(node, flags);
	}
	die("no such device", name);
	return -1;
}

static void print_changed(void)
{
	int first = 1;
	printf(",\"changed\":{");
	for (size_t i = 0; i < ARENA;) {
		if (memory[i] == before[i]) {
			i++;
			continue;
		}
		printf("%s\"%zu\":\"", first ? "" : ",", i);
		first = 0;
		for (; i < ARENA && memory[i] != before[i]; i++)
			printf("%02x", memory[i]);
		printf("\"");
	}
	printf("}");
}

static void perform(char *op, char **w, const char *line, const char *what)
{
	const char *save = word(w, "save"), *v;
	long ret = -1;
	struct pollfd pfd = { 0 };
	struct stat st = { 0 };
	int laid = 0, fds[2];
	int fd = (v = word(w, "fd")) ? (int)signed_number(v) : -1;
	uint64_t at = 0;

	if (word(w, "at")) {
		at = lay(w);
		laid = 1;
	}
	errno = 0;
	if (!strcmp(op, "ioctl"))
		ret = ioctl(fd, command(need(w, "cmd")), (unsigned long)at);
	else if (!strcmp(op, "open")) {
		int flags = (int)number(need(w, "flags"));
		const char *path = need(w, "path");
		ret = path[0] == '@' ? open_device(path + 1, flags) : open(path, flags, 0600);
	} else if (!strcmp(op, "close"))
		ret = close(fd);
	else if (!strcmp(op, "dup"))
		ret = dup(fd);
	else if (!strcmp(op, "memfd")) {
		ret = memfd_create("hostile", (unsigned)number(need(w, "flags")));
		if (ret >= 0 && ftruncate((int)ret, number(need(w, "size"))))
			die("ftruncate", what);
	} else if (!strcmp(op, "eventfd"))
		ret = eventfd(0, 0);
	else if (!strcmp(op, "pipe")) {
		ret = pipe(fds);
		if (!ret) {
			keep("$reader", fds[0]);
			keep("$writer", fds[1]);
		}
	} else if (!strcmp(op, "read"))
		ret = read(fd, (void *)(uintptr_t)at, (size_t)number(need(w, "length")));
	else if (!strcmp(op, "write"))
		ret = write(fd, (void *)(uintptr_t)at, (size_t)number(need(w, "length")));
	else if (!strcmp(op, "pread"))
		ret = pread(fd, (void *)(uintptr_t)at, (size_t)number(need(w, "length")), number(need(w, "position")));
	else if (!strcmp(op, "pwrite"))
		ret = pwrite(fd, (void *)(uintptr_t)at, (size_t)number(need(w, "length")), number(need(w, "position")));
	else if (!strcmp(op, "lseek"))
		ret = lseek(fd, signed_number(need(w, "offset")), (int)number(need(w, "whence")));
	else if (!strcmp(op, "ftruncate"))
		ret = ftruncate(fd, signed_number(need(w, "length")));
	else if (!strcmp(op, "fcntl"))
		ret = fcntl(fd, (int)number(need(w, "cmd")), number(need(w, "arg")));
	else if (!strcmp(op, "poll")) {
		pfd.fd = fd;
		pfd.events = (short)number(need(w, "events"));
		ret = poll(&pfd, 1, 0);
	} else if (!strcmp(op, "fstat"))
		ret = fstat(fd, &st);
	else if (!strcmp(op, "mmap")) {
		size_t length = (size_t)number(need(w, "length"));
		void *m = mmap(NULL, length, (int)number(need(w, "prot")), (int)number(need(w, "flags")), fd, number(need(w, "offset")));
		ret = m == MAP_FAILED ? -1 : 0;
		int e = errno;
		if (!ret)
			munmap(m, length);
		errno = e;
	} else
		die("unknown operation", op);
	int e = ret == -1 ? errno : 0;
	printf("{\"call\":\"%s\",\"what\":\"%s\",\"asked\":\"%s\",\"ret\":%ld,\"errno\":\"%s\"",
	       !strcmp(op, "ioctl") ? need(w, "cmd") : op, what, line, ret, e ? strerrorname_np(e) : "");
	if (laid)
		print_changed();
	if (!strcmp(op, "poll"))
		printf(",\"revents\":%d", pfd.revents);
	if (!strcmp(op, "fstat") && !e)
		printf(",\"mode\":%u,\"size\":%lld", (unsigned)st.st_mode, (long long)st.st_size);
	printf("}\n");
	fflush(stdout);
	if (save && !e) {
		char name[32] = "";
		const char *offset = strchr(save, '@');
		size_t n = offset ? (size_t)(offset - save) : strlen(save);
		if (n >= sizeof name)
			die("long name", save);
		memcpy(name, save, n);
		if (offset) {
			uint32_t kept;
			memcpy(&kept, (void *)(uintptr_t)(at + strtoul(offset + 1, NULL, 0)), 4);
			keep(name, kept);
		} else
			keep(name, ret);
	}
}

static void set_up(void)
{
	memory = mmap(NULL, ARENA + 3 * PAGE + BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap", strerror(errno));
	mprotect(memory + ARENA, PAGE, PROT_NONE);
	mprotect(memory + ARENA + PAGE, PAGE, PROT_READ);
	mprotect(memory + ARENA + 2 * PAGE, PAGE, PROT_NONE);
}

int main(int argc, char **argv)
{
	if (argc < 2)
		die("usage", "hostile PROGRAM [NAME=ADDRESS...]");
	for (int i = 2; i < argc && i < 17; i++)
		arg_devices[i - 2] = argv[i];
	FILE *f = fopen(argv[1], "r");
	if (!f)
		die(argv[1], strerror(errno));
	char **lines = NULL, *line = NULL;
	size_t n = 0, size = 0;
	while (getline(&line, &size, f) > 0) {
		line[strcspn(line, "\n")] = 0;
		lines = realloc(lines, (n + 1) * sizeof *lines);
		lines[n++] = strdup(line);
	}
	fclose(f);
	for (size_t i = 0; i < n;) {
		if (strncmp(lines[i], "section", 7))
			die("a program begins with a section", lines[i]);
		printf("{\"section\":\"%s\"}\n", lines[i] + 8);
		fflush(stdout);
		size_t last = ++i;
		while (last < n && strncmp(lines[last], "section", 7))
			last++;
		pid_t child = fork();
		if (!child) {
			alarm(120);
			set_up();
			for (; i < last; i++) {
				char *words[WORDS], *rest = strdup(lines[i]), *what = strstr(rest, " # "), *op;
				int k = 0;
				if (!what)
					die("a line does not say what it is about", rest);
				*what = 0;
				what += 3;
				op = strtok(rest, " ");
				while ((words[k] = strtok(NULL, " ")) && ++k < WORDS - 1)
					;
				words[k] = NULL;
				perform(op, words, lines[i], what);
			}
			exit(0);
		}
		int status;
		waitpid(child, &status, 0);
		if (status)
			printf("{\"died\":%d}\n", status);
		i = last;
	}
	return 0;
}
