/*
 * Programs for `npm run conformance -- stress`:
 *
 *   load once            one of everything below; answers 0 when each call did what it should
 *   load many N          N processes at once, each 20 times as `once`
 *   load threads T N     T threads, N ioctls each, on one descriptor
 *   load timer N         N long ioctls while a timer of 300 µs with SA_RESTART fires
 *   load loop            as `once` with three threads and a child, until it is killed
 *   load victims N SEED  starts `load loop` N times, and kills each with SIGKILL at a random moment
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

struct ioas_alloc {
	uint32_t size, flags, out_ioas_id;
};

struct destroy {
	uint32_t size, id;
};

struct ioas_map {
	uint32_t size, flags, ioas_id, reserved;
	uint64_t user_va, length, iova;
};

struct ioas_unmap {
	uint32_t size, ioas_id;
	uint64_t iova, length;
};

struct option {
	uint32_t size, option_id;
	uint16_t op, reserved;
	uint32_t object_id;
	uint64_t val64;
};

struct bind {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t out_devid;
};

struct attach {
	uint32_t argsz, flags, pt_id;
};

struct region_info {
	uint32_t argsz, flags, index, cap_offset;
	uint64_t size, offset;
};

struct udmabuf_create {
	uint32_t memfd, flags;
	uint64_t offset, size;
};

#define DESTROY _IO(';', 0x80)
#define IOAS_ALLOC _IO(';', 0x81)
#define IOAS_MAP _IO(';', 0x85)
#define IOAS_UNMAP _IO(';', 0x86)
#define OPTION _IO(';', 0x87)
#define GET_REGION_INFO _IO(';', 108)
#define BIND _IO(';', 118)
#define ATTACH _IO(';', 119)
#define UDMABUF_CREATE _IOW('u', 0x42, struct udmabuf_create)
#define MAP_FLAGS (2 | 4)
#define PAGE 4096

static int quiet;

static int fail(const char *what)
{
	if (!quiet)
		fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	return 1;
}

static uint32_t ioas(int fd)
{
	struct ioas_alloc alloc = { .size = sizeof(alloc) };

	return ioctl(fd, IOAS_ALLOC, &alloc) ? 0 : alloc.out_ioas_id;
}

static int option(int fd, uint32_t id)
{
	struct option o = { .size = sizeof(o), .option_id = 1, .op = 1, .object_id = id, .val64 = 7 };

	return ioctl(fd, OPTION, &o) || o.val64 != 1;
}

/* Pins `length` bytes of anonymous memory and lets go of them. */
static int memory(int fd, uint32_t id, size_t length)
{
	struct ioas_map map = { .size = sizeof(map), .flags = MAP_FLAGS, .ioas_id = id, .length = length };
	struct ioas_unmap unmap = { .size = sizeof(unmap), .ioas_id = id, .length = length };
	char *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int bad = 0;

	if (at == MAP_FAILED)
		return fail("mmap");
	at[0] = 1;
	map.user_va = (uint64_t)at;
	if (ioctl(fd, IOAS_MAP, &map))
		bad = fail("IOMMU_IOAS_MAP");
	unmap.iova = map.iova;
	if (!bad && (ioctl(fd, IOAS_UNMAP, &unmap) || unmap.length != length))
		bad = fail("IOMMU_IOAS_UNMAP");
	munmap(at, length);
	return bad;
}

/* A device with what hangs on it. Another process may have it: then that is all. */
static int device(int fd, uint32_t id, const char *path)
{
	struct bind bind = { .argsz = sizeof(bind), .iommufd = fd };
	struct attach attach = { .argsz = sizeof(attach), .pt_id = id };
	struct region_info region = { .argsz = sizeof(region), .index = 7 };
	uint32_t ids = 0;
	int dev = open(path, O_RDWR | O_CLOEXEC), bad = 0;

	if (dev < 0)
		return errno == EBUSY ? 0 : fail(path);
	if (ioctl(dev, BIND, &bind))
		bad = errno == EBUSY || errno == EINVAL || errno == EPERM ? 0 : fail("VFIO_DEVICE_BIND_IOMMUFD");
	else if (ioctl(dev, ATTACH, &attach))
		bad = fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
	else if (ioctl(dev, GET_REGION_INFO, &region))
		bad = fail("VFIO_DEVICE_GET_REGION_INFO");
	else if (pread(dev, &ids, 4, region.offset) != 4 || ids == 0 || ids == 0xffffffff)
		bad = fail("pread of the configuration");
	close(dev);
	return bad;
}

static int buffer(void)
{
	struct udmabuf_create create = { .size = PAGE };
	int dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC), mem, buf;

	if (dev < 0)
		return fail("/dev/udmabuf");
	mem = memfd_create("load", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	if (ftruncate(mem, PAGE) || fcntl(mem, F_ADD_SEALS, F_SEAL_SHRINK))
		return fail("memfd");
	create.memfd = mem;
	buf = ioctl(dev, UDMABUF_CREATE, &create);
	if (buf < 0)
		return fail("UDMABUF_CREATE");
	close(buf);
	close(mem);
	close(dev);
	return 0;
}

static int once(void)
{
	int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC), second;
	struct destroy destroy = { .size = sizeof(destroy) };
	uint32_t id;

	if (fd < 0)
		return fail("/dev/iommu");
	id = ioas(fd);
	if (id == 0)
		return fail("IOMMU_IOAS_ALLOC");
	second = dup(fd);
	if (option(second, id))
		return fail("IOMMU_OPTION");
	if (close(second) || memory(fd, id, 16 * PAGE) || device(fd, id, "/dev/vfio/devices/vfio0") || buffer())
		return 1;
	destroy.id = id;
	if (ioctl(fd, DESTROY, &destroy))
		return fail("IOMMU_DESTROY");
	return close(fd);
}

static int reap(int children)
{
	int bad = 0, status;

	while (children-- > 0)
		if (wait(&status) < 0 || status != 0)
			bad++;
	return bad;
}

static int many(int n)
{
	int i, k;

	for (i = 0; i < n; i++) {
		if (fork() == 0) {
			for (k = 0; k < 20; k++)
				if (once())
					_exit(1);
			_exit(0);
		}
	}
	return reap(n) != 0;
}

struct share {
	int fd;
	uint32_t id;
	long n;
	long bad;
};

static void *ask(void *arg)
{
	struct share *s = arg;
	long i;

	for (i = 0; i < s->n; i++)
		s->bad += option(s->fd, s->id);
	return NULL;
}

static int threads(int count, long n)
{
	struct share s[64] = { 0 };
	pthread_t t[64];
	int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC), i;
	long bad = 0;

	if (fd < 0 || count > 64)
		return fail("/dev/iommu");
	for (i = 0; i < count; i++) {
		s[i].fd = fd;
		s[i].id = ioas(fd);
		s[i].n = n;
		if (pthread_create(&t[i], NULL, ask, &s[i]))
			return fail("pthread_create");
	}
	for (i = 0; i < count; i++) {
		pthread_join(t[i], NULL);
		bad += s[i].bad;
	}
	if (bad)
		fprintf(stderr, "load: %ld of %ld ioctls were answered wrongly\n", bad, count * n);
	return bad != 0;
}

static volatile sig_atomic_t fired;

static void tick(int signal)
{
	(void)signal;
	fired++;
}

static int timer(int n)
{
	struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART };
	struct itimerval every = { { 0, 300 }, { 0, 300 } }, never = { 0 };
	int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC), i, bad = 0;
	uint32_t id = ioas(fd);

	if (id == 0)
		return fail("IOMMU_IOAS_ALLOC");
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	for (i = 0; i < n && !bad; i++)
		bad = memory(fd, id, 16 << 20) || option(fd, id);
	setitimer(ITIMER_REAL, &never, NULL);
	if (!bad && fired < n)
		bad = fprintf(stderr, "load: the timer fired %d times only\n", (int)fired);
	return bad;
}

static void *forever(void *arg)
{
	for (;;)
		once();
	return arg;
}

static int loop(void)
{
	pid_t self = getpid();
	pthread_t t;
	int i;

	/* What fails while others are killed is no matter: the end is. */
	quiet = 1;
	for (i = 0; i < 2; i++)
		pthread_create(&t, NULL, forever, NULL);
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* Our parent may have been killed before we asked to hear of it. */
		for (i = 0; getppid() == self && i < 1000; i++)
			once();
		_exit(0);
	}
	forever(NULL);
	return 0;
}

#define MOST_FDS 1024
#define NAME 128

/* What our parent, barlink, has open. */
struct open_files {
	int count;
	char names[MOST_FDS][NAME];
};

static void look(struct open_files *all)
{
	char path[64];
	struct dirent *e;
	ssize_t n;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", getppid());
	d = opendir(path);
	all->count = 0;
	while (d && all->count < MOST_FDS && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		n = readlinkat(dirfd(d), e->d_name, all->names[all->count], NAME - 1);
		/* It was closed meanwhile. */
		if (n < 0)
			continue;
		all->names[all->count++][n] = 0;
	}
	if (d)
		closedir(d);
}

/* Names those of `now` that `before` does not have, as often as it has them. */
static void name_new(const struct open_files *before, const struct open_files *now)
{
	static char matched[MOST_FDS];
	int i, k;

	memset(matched, 0, sizeof(matched));
	for (i = 0; i < now->count; i++) {
		for (k = 0; k < before->count; k++)
			if (!matched[k] && !strcmp(now->names[i], before->names[k]))
				break;
		if (k < before->count)
			matched[k] = 1;
		else
			fprintf(stderr, "load: barlink has %s, and had it not\n", now->names[i]);
	}
}

/* Counts our parent's children but us that have ended (zombies), or that live: what those hold is no leak. */
static int count_children(int zombies)
{
	char path[64], state;
	int count = 0, pid, ppid;
	struct dirent *e;
	DIR *d;
	FILE *f;

	d = opendir("/proc");
	while (d && (e = readdir(d))) {
		snprintf(path, sizeof(path), "/proc/%.20s/stat", e->d_name);
		f = atoi(e->d_name) > 0 ? fopen(path, "r") : NULL;
		if (!f)
			continue;
		if (fscanf(f, "%d (%*[^)]) %c %d", &pid, &state, &ppid) == 3 && ppid == getppid() && pid != getpid())
			count += (state == 'Z') == zombies;
		fclose(f);
	}
	if (d)
		closedir(d);
	return count;
}

static int victims(const char *self, int n, unsigned seed)
{
	static struct open_files before, after;
	int bad = 0, status, zombies = 0, i;

	if (once())
		return 1;
	look(&before);
	srandom(seed);
	while (n-- > 0) {
		pid_t pid = fork();

		if (pid == 0) {
			execl(self, self, "loop", NULL);
			_exit(127);
		}
		usleep(random() % 40000);
		kill(pid, SIGKILL);
		if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
			bad++;
	}
	if (bad)
		fprintf(stderr, "load: %d did not end by the signal\n", bad);
	/* What was orphaned ends, and is waited for, a little later. */
	for (i = 0; i < 50; i++) {
		usleep(100000);
		look(&after);
		zombies = count_children(1);
		if (zombies == 0 && after.count <= before.count)
			return bad || once();
	}
	fprintf(stderr, "load: barlink has %d zombies, %d other children, and %d descriptors where it had %d\n", zombies,
		count_children(0), after.count, before.count);
	name_new(&before, &after);
	return 1;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	long n = argc > 2 ? atol(argv[2]) : 0;

	if (!strcmp(what, "once"))
		return once();
	if (!strcmp(what, "many"))
		return many(n);
	if (!strcmp(what, "threads") && argc > 3)
		return threads(n, atol(argv[3]));
	if (!strcmp(what, "timer"))
		return timer(n);
	if (!strcmp(what, "loop"))
		return loop();
	if (!strcmp(what, "victims") && argc > 3)
		return victims(argv[0], n, atoi(argv[3]));
	return 2;
}
