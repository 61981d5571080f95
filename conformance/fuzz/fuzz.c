/*
 * Makes the calls of a program on a real Linux and prints its answers, one a line.
 *
 * The program is text, written by `npm run conformance -- fuzz`; `program.ts` says what its words mean, `execute.ts` makes the
 * same calls on the embedded kernel. This file knows no structure and no number of an ioctl.
 *
 *   gcc -O1 -static -Wall -o fuzz fuzz.c
 *   ./fuzz FILE edu=0000:01:00.0 ivshmem=0000:02:00.0 nvme=0000:03:00.0 > answers
 *
 * A line is what was returned, or the name of the error, then the runs of bytes of the arena that the call changed.
 * Warnings and worse that the kernel logged meanwhile come last, as lines that begin with `#`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 0x1000UL
#define ARENA 0x200000000000UL
#define ARENA_BYTES (2 * PAGE)
#define GUARD (ARENA + ARENA_BYTES)
#define RO (GUARD + PAGE)
#define DATA 0x200001000000UL
#define DATA_PAGES 64
#define FILL 0xa5
#define SLOTS 1024
#define WORDS 96
/* Two descriptors out of the way of those that calls get. */
#define PIPE 1000

static uint8_t slots[SLOTS][8];
static uint8_t before[ARENA_BYTES];
static uint8_t bytes[1 << 20];
static char *arg_devices[16];

static void die(const char *what, const char *detail)
{
	fprintf(stderr, "fuzz: %s: %s\n", what, detail);
	exit(2);
}

static size_t unhex(const char *s, uint8_t *out)
{
	size_t n = 0;
	for (; s[0] && s[1]; s += 2, n++) {
		int hi = s[0] <= '9' ? s[0] - '0' : s[0] - 'a' + 10, lo = s[1] <= '9' ? s[1] - '0' : s[1] - 'a' + 10;
		out[n] = (uint8_t)(hi << 4 | lo);
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

static int descriptor(const char *s)
{
	int32_t v;
	if (!s)
		return -1;
	if (s[0] != '$')
		return (int)strtol(s, NULL, 10);
	memcpy(&v, slots[atoi(s + 1)], 4);
	return v;
}

static uint64_t number(const char *list, int index)
{
	uint64_t v;
	for (; list && index; index--)
		if ((list = strchr(list, ',')))
			list++;
	if (!list)
		return 0;
	if (list[0] != '$')
		return list[0] == '-' ? (uint64_t)strtoll(list, NULL, 10) : strtoull(list, NULL, 10);
	memcpy(&v, slots[atoi(list + 1)], 8);
	return v;
}

/* A word like p8=3:4: whether it is one of that letter, and its numbers. */
static int link_word(const char *w, char letter, unsigned long *at, unsigned long *slot, unsigned long *width)
{
	char *end;
	if (w[0] != letter || w[1] < '0' || w[1] > '9')
		return 0;
	*at = strtoul(w + 1, &end, 10);
	*slot = strtoul(end + 1, &end, 10);
	*width = strtoul(end + 1, &end, 10);
	return 1;
}

static uint64_t lay(char **w, size_t *length)
{
	uint64_t at = strtoull(word(w, "at"), NULL, 16);
	size_t n = unhex(word(w, "x"), bytes);
	unsigned long off, slot, width;

	memset((void *)ARENA, FILL, ARENA_BYTES);
	for (char **p = w; *p; p++) {
		if (link_word(*p, 'p', &off, &slot, &width))
			memcpy(bytes + off, slots[slot], width);
		else if ((*p)[0] == 'm' && (*p)[1] >= '0' && (*p)[1] <= '9')
			unhex(strchr(*p, '=') + 1, (uint8_t *)ARENA + atoi(*p + 1));
	}
	if (at >= ARENA && at < GUARD)
		memcpy((void *)at, bytes, n < GUARD - at ? n : GUARD - at);
	if (at >= RO && at < RO + PAGE) {
		mprotect((void *)RO, PAGE, PROT_READ | PROT_WRITE);
		memcpy((void *)at, bytes, n < RO + PAGE - at ? n : RO + PAGE - at);
		mprotect((void *)RO, PAGE, PROT_READ);
	}
	memcpy(before, (void *)ARENA, ARENA_BYTES);
	*length = n;
	return at;
}

static int open_device(const char *name, int flags)
{
	char path[256], node[300] = "";
	for (char **d = arg_devices; *d; d++) {
		size_t n = strlen(name);
		if (strncmp(*d, name, n) || (*d)[n] != '=')
			continue;
		snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", *d + n + 1);
		DIR *dir = opendir(path);
		struct dirent *e;
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

/* Linux has the regions of a device 2^40 bytes apart; whoever does not, says so. */
static off_t region(int fd, uint64_t index, uint64_t offset)
{
	struct vfio_region_info info = { .argsz = sizeof info, .index = (uint32_t)index };
	if (fd >= 0 && !ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &info))
		return (off_t)(info.offset + offset);
	return (off_t)((index << 40) + offset);
}

/* An offset of a mapping, which names a region from its 40th bit on: iommufd's and files' are small. */
static off_t mapped_at(int fd, uint64_t offset)
{
	int e = errno;
	off_t at = offset >> 40 ? region(fd, offset >> 40, offset & ((1UL << 40) - 1)) : (off_t)offset;
	errno = e;
	return at;
}

static void drop(unsigned capability)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	if (syscall(SYS_capget, &header, data))
		die("capget", strerror(errno));
	data[capability / 32].effective &= ~(1U << capability % 32);
	data[capability / 32].permitted &= ~(1U << capability % 32);
	if (syscall(SYS_capset, &header, data))
		die("capset", strerror(errno));
}

/* Reads or writes this process's own memory up to where that stops to be allowed: through a pipe, as the kernel copies. */
static long own_memory(int write_it, uint64_t at, uint8_t *buffer, size_t length)
{
	uint8_t scrap[PAGE];
	size_t done = 0;
	while (done < length) {
		size_t piece = PAGE - ((at + done) & (PAGE - 1));
		if (piece > length - done)
			piece = length - done;
		uint8_t *there = (uint8_t *)(at + done);
		ssize_t put = write(PIPE + 1, write_it ? buffer + done : there, piece);
		if (put <= 0)
			break;
		ssize_t got = read(PIPE, write_it ? there : buffer + done, (size_t)put);
		if (got < put && read(PIPE, scrap, (size_t)(put - (got < 0 ? 0 : got))) < 0)
			die("pipe", strerror(errno));
		if (got <= 0)
			break;
		done += (size_t)got;
		if (got < (ssize_t)piece)
			break;
	}
	return (long)done;
}

static void print_changed(void)
{
	const uint8_t *arena = (const uint8_t *)ARENA;
	for (size_t i = 0; i < ARENA_BYTES;) {
		if (arena[i] == before[i]) {
			i++;
			continue;
		}
		printf(" %zu:", i);
		for (; i < ARENA_BYTES && arena[i] != before[i]; i++)
			printf("%02x", arena[i]);
	}
}

static void perform(char *op, char **w)
{
	const char *n = word(w, "n"), *fd_word = word(w, "fd"), *save = word(w, "save");
	int fd = descriptor(fd_word), laid = 0;
	char more[64] = "";
	size_t length = 0;
	uint64_t at = 0;
	long ret = -1;

	if (word(w, "at")) {
		at = lay(w, &length);
		laid = 1;
	}
	errno = 0;
	if (!strcmp(op, "ioctl"))
		ret = ioctl(fd, number(n, 0), at);
	else if (!strcmp(op, "open")) {
		const char *path = word(w, "path");
		ret = path[0] == '@' ? open_device(path + 1, (int)number(n, 0)) : open(path, (int)number(n, 0), 0600);
	} else if (!strcmp(op, "close")) {
		ret = close(fd);
		if (!ret && fd_word[0] == '$')
			memset(slots[atoi(fd_word + 1)], 0xff, 8);
	} else if (!strcmp(op, "dup"))
		ret = dup(fd);
	else if (!strcmp(op, "memfd")) {
		ret = memfd_create("fuzz", (unsigned)number(n, 0));
		if (ret >= 0 && ftruncate((int)ret, (off_t)number(n, 1)))
			die("ftruncate", strerror(errno));
	} else if (!strcmp(op, "truncate"))
		ret = ftruncate(fd, (off_t)number(n, 0));
	else if (!strcmp(op, "eventfd"))
		ret = eventfd(0, EFD_NONBLOCK);
	else if (!strcmp(op, "read"))
		ret = read(fd, (void *)at, (size_t)number(n, 0));
	else if (!strcmp(op, "write"))
		ret = write(fd, (void *)at, length);
	else if (!strcmp(op, "pread"))
		ret = pread(fd, (void *)at, (size_t)number(n, 2), region(fd, number(n, 0), number(n, 1)));
	else if (!strcmp(op, "pwrite"))
		ret = pwrite(fd, (void *)at, length, region(fd, number(n, 0), number(n, 1)));
	else if (!strcmp(op, "mmap"))
		ret = mmap((void *)number(n, 0), number(n, 1), (int)number(n, 2), (int)number(n, 3), fd, mapped_at(fd, number(n, 4))) == MAP_FAILED ? -1 : 0;
	else if (!strcmp(op, "munmap"))
		ret = munmap((void *)number(n, 0), number(n, 1));
	else if (!strcmp(op, "mprotect"))
		ret = mprotect((void *)number(n, 0), number(n, 1), (int)number(n, 2));
	else if (!strcmp(op, "look")) {
		uint32_t hash = 0x811c9dc5;
		ret = own_memory(0, number(n, 0), bytes, number(n, 1));
		for (long i = 0; i < ret; i++)
			hash = (hash ^ bytes[i]) * 0x01000193;
		snprintf(more, sizeof more, "/%x", hash);
	} else if (!strcmp(op, "poke")) {
		memset(bytes, (int)number(n, 2), number(n, 1));
		ret = own_memory(1, number(n, 0), bytes, number(n, 1));
	} else if (!strcmp(op, "poll")) {
		struct pollfd p = { fd, (short)number(n, 0), 0 };
		ret = poll(&p, 1, 0);
		snprintf(more, sizeof more, "/%d", p.revents);
	} else if (!strcmp(op, "memlock")) {
		struct rlimit limit = { number(n, 0), number(n, 0) };
		ret = setrlimit(RLIMIT_MEMLOCK, &limit);
	} else if (!strcmp(op, "drop")) {
		drop((unsigned)number(n, 0));
		ret = 0;
	} else if (!strcmp(op, "sleep"))
		ret = usleep((unsigned)number(n, 0) * 1000);
	else
		die("unknown operation", op);
	int e = ret == -1 ? errno : 0;
	if (e)
		printf("%s", strerrorname_np(e) ? strerrorname_np(e) : (snprintf(more, sizeof more, "E%d", e), more));
	else
		printf("%ld%s", ret, more);
	if (laid)
		print_changed();
	printf("\n");
	if (e)
		return;
	if (save) {
		int64_t v = ret;
		memcpy(slots[atoi(save)], &v, 8);
	}
	for (char **p = w; *p; p++) {
		unsigned long off, slot, width;
		uint8_t kept[8] = { 0 };
		if (link_word(*p, 's', &off, &slot, &width) && own_memory(0, at + off, kept, width) == (long)width)
			memcpy(slots[slot], kept, 8);
	}
}

static void map(uint64_t at, size_t length, int prot)
{
	if (mmap((void *)at, length, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (void *)at)
		die("mmap", strerror(errno));
}

static void set_up(void)
{
	int ends[2];
	memset(slots, 0xff, sizeof slots);
	if (pipe(ends) || dup2(ends[0], PIPE) < 0 || dup2(ends[1], PIPE + 1) < 0)
		die("pipe", strerror(errno));
	close(ends[0]);
	close(ends[1]);
	map(ARENA, ARENA_BYTES, PROT_READ | PROT_WRITE);
	map(GUARD, PAGE, PROT_NONE);
	map(RO, PAGE, PROT_READ);
	map(DATA, DATA_PAGES * PAGE, PROT_READ | PROT_WRITE);
	for (unsigned i = 0; i < DATA_PAGES; i++)
		memset((void *)(DATA + i * PAGE), (int)i + 1, PAGE);
}

static void run(char **lines, size_t from, size_t to)
{
	alarm(300);
	set_up();
	for (size_t i = from; i < to; i++) {
		char *words[WORDS], *rest = lines[i], *op = strtok(rest, " ");
		int k = 0;
		while ((words[k] = strtok(NULL, " ")) && ++k < WORDS - 1)
			;
		words[k] = NULL;
		perform(op, words);
		/* Whatever kills this process must not take answers along. */
		fflush(stdout);
	}
}

/* What the kernel warned of since `log` was last read. */
static void warnings(int log)
{
	static const char *const bad[] = { "WARNING:", "BUG:", "Oops", "possible circular", "possible recursive", "refcount_t", "UBSAN", "KASAN" };
	char record[8192];
	ssize_t n;
	while (log >= 0 && ((n = read(log, record, sizeof record - 1)) > 0 || (n < 0 && errno == EPIPE))) {
		if (n < 0)
			continue;
		record[n] = 0;
		for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
			if (strstr(record, bad[i])) {
				char *text = strchr(record, ';');
				printf("# %.*s\n", (int)strcspn(text ? text + 1 : record, "\n"), text ? text + 1 : record);
				break;
			}
	}
}

int main(int argc, char **argv)
{
	if (argc < 2)
		die("usage", "fuzz PROGRAM [NAME=ADDRESS...]");
	for (int i = 2; i < argc && i < 17; i++)
		arg_devices[i - 2] = argv[i];
	FILE *f = fopen(argv[1], "r");
	if (!f)
		die(argv[1], strerror(errno));
	char **lines = NULL, *line = NULL;
	size_t n = 0, size = 0;
	while (getline(&line, &size, f) > 0) {
		line[strcspn(line, "\n")] = 0;
		if (n % 4096 == 0)
			lines = realloc(lines, (n + 4096) * sizeof *lines);
		lines[n++] = strdup(line);
	}
	fclose(f);
	for (size_t i = 0; i < n;) {
		if (strncmp(lines[i], "sequence ", 9))
			die("a program begins with a sequence", lines[i]);
		printf("%s\n", lines[i]);
		fflush(stdout);
		size_t last = ++i;
		while (last < n && strncmp(lines[last], "sequence ", 9))
			last++;
		pid_t child = fork();
		if (!child) {
			run(lines, i, last);
			_exit(0);
		}
		int status;
		waitpid(child, &status, 0);
		if (status)
			printf("died %d\n", status);
		i = last;
	}
	int log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	warnings(log);
	return 0;
}
