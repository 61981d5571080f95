/*
 * events: random calls on fault queues and event queues, good and bad, printed
 * with what the kernel answered. One seed makes the same calls everywhere, as
 * long as the answers are the same: what one kernel prints can be held against
 * what another does, line by line.
 *
 * usage: events SEED RUNS STEPS
 *
 * Needs a kernel with iommufd's own tests. Each run opens /dev/iommu anew. The
 * devices are mock devices, the last of them a guest's, on a nested table of a
 * virtual IOMMU. A buffer that ends too early ends at a page that cannot be
 * accessed. Answers are given mostly to cookies that were read, and now and then
 * to one that was not, 0 among them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/iommufd.h>
#include "iommufd_test.h"

#define GHOST 0x7ffffff0u
#define FAULT ((int)sizeof(struct iommu_hwpt_pgfault))
#define PAGE 4096
#define COUNT(a) (sizeof(a) / sizeof(*(a)))
#define TEST(op_, id_) { .size = sizeof(struct iommu_test_cmd), .op = (op_), .id = (id_) }

struct queue { uint32_t id; int fd; };
struct device { uint32_t stdev, idev; int attached[4]; };

static uint64_t state;
static int iommu;
static char *page;
static uint32_t ioas, grpid;
static struct queue queues[8];
static struct device devices[4];
static uint32_t tables[32], cookies[256];
static unsigned nqueues, ndevices, ntables, ncookies;
static const uint32_t pasids[] = { 0, 1, 2, 1024 };
static struct { uint32_t stdev, idev, viommu, nested, veventq; int fd; } guest;

/* Below n. */
static uint32_t rnd(uint32_t n)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % n;
}

static const char *said(long r)
{
	static char text[32];

	if (r < 0)
		return strerrorname_np(errno);
	snprintf(text, sizeof(text), "%ld", r);
	return text;
}

static int test(struct iommu_test_cmd *cmd)
{
	return ioctl(iommu, _IO(IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 32), cmd);
}

static struct queue *any_queue(void)
{
	return nqueues ? &queues[rnd(nqueues)] : NULL;
}

static struct device *any_device(void)
{
	return ndevices ? &devices[rnd(ndevices)] : NULL;
}

/* Something to attach to, mostly a table. */
static uint32_t any_pt(void)
{
	uint32_t k = rnd(20);

	if (k == 0 || !ntables)
		return ioas;
	if (k == 1)
		return GHOST;
	if (k == 2 && nqueues)
		return queues[rnd(nqueues)].id;
	return tables[rnd(ntables)];
}

/* A buffer of the page's last bytes, so many that can be accessed. */
static char *buffer(int room)
{
	memset(page, 0, PAGE);
	return page + PAGE - room;
}

static void alloc_queue(void)
{
	struct iommu_fault_alloc cmd = { .size = sizeof(cmd) };
	int r;

	if (nqueues == COUNT(queues))
		return;
	cmd.flags = rnd(5) == 0;
	if (rnd(9) == 0)
		cmd.size--;
	r = ioctl(iommu, IOMMU_FAULT_QUEUE_ALLOC, &cmd);
	printf("queue flags %x size %u: %s", cmd.flags, cmd.size, said(r));
	printf(" id %u fd %u\n", cmd.out_fault_id, cmd.out_fault_fd);
	if (r == 0)
		queues[nqueues++] = (struct queue){ cmd.out_fault_id, cmd.out_fault_fd };
}

static void alloc_device(void)
{
	struct iommu_test_cmd cmd = TEST(IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, ioas);
	int r;

	if (ndevices == 3)
		return;
	cmd.mock_domain_flags.dev_flags = MOCK_FLAGS_DEVICE_PASID;
	r = test(&cmd);
	printf("device: %s", said(r));
	printf(" stdev %u idev %u hwpt %u\n", cmd.mock_domain_flags.out_stdev_id, cmd.mock_domain_flags.out_idev_id, cmd.mock_domain_flags.out_hwpt_id);
	if (r == 0)
		devices[ndevices++] = (struct device){ cmd.mock_domain_flags.out_stdev_id, cmd.mock_domain_flags.out_idev_id };
}

static void alloc_table(void)
{
	struct iommu_hwpt_alloc cmd = { .size = sizeof(cmd) };
	struct device *d = any_device();
	uint32_t k = rnd(16);
	int r;

	if (!d || ntables >= 12)
		return;
	cmd.dev_id = d->idev;
	cmd.pt_id = ioas;
	cmd.flags = rnd(20) ? IOMMU_HWPT_ALLOC_PASID : 0;
	if (k > 0) {
		cmd.flags |= IOMMU_HWPT_FAULT_ID_VALID;
		cmd.fault_id = k == 1 ? GHOST : k == 2 ? ioas : nqueues ? queues[rnd(nqueues)].id : 0;
	}
	if (k == 3)
		cmd.flags |= IOMMU_HWPT_ALLOC_NEST_PARENT;
	if (k == 4)
		cmd.flags |= 1u << 30;
	r = ioctl(iommu, IOMMU_HWPT_ALLOC, &cmd);
	printf("table dev %u flags %x fault %u: %s", cmd.dev_id, cmd.flags, cmd.fault_id, said(r));
	printf(" id %u\n", cmd.out_hwpt_id);
	if (r == 0)
		tables[ntables++] = cmd.out_hwpt_id;
}

static void move(void)
{
	struct iommu_test_cmd cmd = TEST(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, 0);
	struct device *d = any_device();
	uint32_t to = any_pt();
	int r;

	if (!d)
		return;
	cmd.id = d->stdev;
	cmd.mock_domain_replace.pt_id = to;
	r = test(&cmd);
	printf("move %u to %u: %s", d->stdev, to, said(r));
	printf(" hwpt %u\n", cmd.mock_domain_replace.pt_id);
}

static void change_pasid(void)
{
	static const struct { uint32_t op; const char *name; } how[] = {
		{ IOMMU_TEST_OP_PASID_ATTACH, "attach" }, { IOMMU_TEST_OP_PASID_REPLACE, "replace" }, { IOMMU_TEST_OP_PASID_DETACH, "detach" },
	};
	struct device *d = any_device();
	uint32_t to = any_pt(), i = 1 + rnd(3), k = rnd(5) / 2;
	struct iommu_test_cmd cmd = TEST(how[k].op, 0);
	int r;

	if (!d)
		return;
	cmd.id = d->stdev;
	cmd.pasid_attach.pasid = pasids[i];
	if (k < 2)
		cmd.pasid_attach.pt_id = to;
	r = test(&cmd);
	printf("%s %u pasid %u to %u: %s", how[k].name, d->stdev, pasids[i], to, said(r));
	printf(" hwpt %u\n", cmd.pasid_attach.pt_id);
	if (r == 0)
		d->attached[i] = k < 2;
}

static void trigger(void)
{
	struct iommu_test_cmd cmd = TEST(IOMMU_TEST_OP_TRIGGER_IOPF, 0);
	struct device *d = rnd(12) ? any_device() : NULL;
	uint32_t k = rnd(20), pasid = pasids[rnd(4)];

	cmd.trigger_iopf.dev_id = d ? d->idev : ioas;
	cmd.trigger_iopf.pasid = k == 0 ? 77 : k < 10 ? 0 : pasid;
	cmd.trigger_iopf.grpid = grpid++;
	cmd.trigger_iopf.perm = rnd(16);
	cmd.trigger_iopf.addr = (uint64_t)rnd(1 << 20) << 12;
	printf("trigger dev %u pasid %u: ", cmd.trigger_iopf.dev_id, cmd.trigger_iopf.pasid);
	printf("%s\n", said(test(&cmd)));
}

static void burst(void)
{
	unsigned n = rnd(70);

	if (rnd(4) == 0)
		while (n--)
			trigger();
}

static void read_faults(void)
{
	static const int odd[] = { FAULT - 1, FAULT + 1, 1 };
	struct queue *q = any_queue();
	int count = FAULT * rnd(5), room = PAGE, r, i;
	uint32_t k = rnd(16);
	char *b;

	if (!q || q->fd < 0)
		return;
	if (k < 3)
		count = odd[k];
	else if (k < 7)
		count = FAULT * rnd(60);
	if (rnd(3) == 0)
		room = FAULT * rnd(3) + rnd(5);
	b = buffer(room);
	r = read(q->fd, b, count);
	printf("read queue %u count %d room %d: %s", q->id, count, room, said(r));
	for (i = 0; i < r / FAULT; i++) {
		struct iommu_hwpt_pgfault *f = (void *)(b + FAULT * i);

		printf(" [%x dev %u pasid %u grp %u perm %x %llx length %u cookie %u]", f->flags, f->dev_id, f->pasid, f->grpid, f->perm,
		       (unsigned long long)f->addr, f->length, f->cookie);
		if (ncookies < COUNT(cookies))
			cookies[ncookies++] = f->cookie;
	}
	printf("\n");
}

static void answer(void)
{
	struct iommu_hwpt_page_response a[4] = {};
	struct queue *q = any_queue();
	unsigned n = rnd(5), i;
	int count = n * sizeof(*a), room = PAGE, r;
	uint32_t k = rnd(14);
	char *b;

	if (!q || q->fd < 0)
		return;
	printf("answer queue %u:", q->id);
	for (i = 0; i < n; i++) {
		if (ncookies && rnd(8)) {
			unsigned j = rnd(ncookies);

			a[i].cookie = cookies[j];
			if (rnd(4))
				cookies[j] = cookies[--ncookies];
		} else {
			a[i].cookie = rnd(8);
		}
		a[i].code = rnd(12) ? rnd(2) : 2;
		printf(" %u=%u", a[i].cookie, a[i].code);
	}
	if (k == 0)
		count = 7;
	if (k == 1)
		count += 3;
	if (rnd(6) == 0)
		room = rnd(20);
	b = buffer(room);
	memcpy(b, a, room < (int)sizeof(a) ? room : (int)sizeof(a));
	r = write(q->fd, b, count);
	printf(" count %d room %d: %s\n", count, room, said(r));
}

static void poll_one(const char *name, uint32_t id, int fd)
{
	struct pollfd p = { fd, POLLIN | POLLOUT | POLLRDNORM | POLLPRI, 0 };
	int r = poll(&p, 1, 0);

	printf("poll %s %u: %s", name, id, said(r));
	printf(" %x\n", p.revents);
}

static void poll_queue(void)
{
	struct queue *q = any_queue();

	if (q && q->fd >= 0)
		poll_one("queue", q->id, q->fd);
}

static void close_queue(void)
{
	struct queue *q = any_queue();

	if (!q || q->fd < 0 || rnd(6))
		return;
	printf("close queue %u: ", q->id);
	printf("%s\n", said(close(q->fd)));
	q->fd = -1;
}

static void destroy(void)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd) };
	uint32_t k = rnd(4), i = rnd(64);
	int r;

	if (k == 0 && ntables) {
		cmd.id = tables[i %= ntables];
	} else if (k == 1 && nqueues) {
		cmd.id = queues[i %= nqueues].id;
	} else if (k == 2 && ndevices) {
		struct device *d = &devices[i %= ndevices];

		/* Linux frees a mock device under the PASIDs that are attached. */
		if (d->attached[1] || d->attached[2] || d->attached[3])
			return;
		cmd.id = d->stdev;
	} else if (k == 3 && ndevices) {
		cmd.id = devices[i %= ndevices].idev;
	} else {
		return;
	}
	r = ioctl(iommu, IOMMU_DESTROY, &cmd);
	printf("destroy %u: %s\n", cmd.id, said(r));
	if (r)
		return;
	if (k == 0)
		tables[i] = tables[--ntables];
	else if (k == 1)
		queues[i] = queues[--nqueues];
	else
		devices[i] = devices[--ndevices];
}

/* A device that a guest calls 0x99, on the guest's own table, with the first fault queue if there is one. */
static void make_guest(void)
{
	struct iommu_test_cmd dev = TEST(IOMMU_TEST_OP_MOCK_DOMAIN, ioas);
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	struct iommu_hwpt_alloc parent = { .size = sizeof(parent), .pt_id = ioas, .flags = IOMMU_HWPT_ALLOC_NEST_PARENT };
	struct iommu_viommu_alloc viommu = { .size = sizeof(viommu), .type = IOMMU_VIOMMU_TYPE_SELFTEST };
	struct iommu_vdevice_alloc vdev = { .size = sizeof(vdev), .virt_id = 0x99 };
	struct iommu_hwpt_alloc nested = {
		.size = sizeof(nested), .data_type = IOMMU_HWPT_DATA_SELFTEST, .data_len = sizeof(data), .data_uptr = (uintptr_t)&data,
	};
	int r = test(&dev);

	guest.stdev = dev.mock_domain.out_stdev_id;
	guest.idev = parent.dev_id = viommu.dev_id = vdev.dev_id = nested.dev_id = dev.mock_domain.out_idev_id;
	r |= ioctl(iommu, IOMMU_HWPT_ALLOC, &parent);
	viommu.hwpt_id = parent.out_hwpt_id;
	r |= ioctl(iommu, IOMMU_VIOMMU_ALLOC, &viommu);
	guest.viommu = vdev.viommu_id = nested.pt_id = viommu.out_viommu_id;
	r |= ioctl(iommu, IOMMU_VDEVICE_ALLOC, &vdev);
	if (nqueues) {
		nested.flags = IOMMU_HWPT_FAULT_ID_VALID;
		nested.fault_id = queues[0].id;
	}
	r |= ioctl(iommu, IOMMU_HWPT_ALLOC, &nested);
	guest.nested = nested.out_hwpt_id;
	guest.veventq = 0;
	guest.fd = -1;
	printf("guest: %d stdev %u idev %u viommu %u vdevice %u nested %u\n", r, guest.stdev, guest.idev, guest.viommu, vdev.out_vdevice_id, guest.nested);
}

static void move_guest(void)
{
	struct iommu_test_cmd cmd = TEST(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, guest.stdev);

	cmd.mock_domain_replace.pt_id = rnd(3) ? guest.nested : ioas;
	printf("move guest to %u: ", cmd.mock_domain_replace.pt_id);
	printf("%s\n", said(test(&cmd)));
}

static void fault_guest(void)
{
	struct iommu_test_cmd cmd = TEST(IOMMU_TEST_OP_TRIGGER_IOPF, 0);

	cmd.trigger_iopf.dev_id = guest.idev;
	cmd.trigger_iopf.pasid = rnd(3);
	cmd.trigger_iopf.grpid = grpid++;
	printf("trigger guest pasid %u: ", cmd.trigger_iopf.pasid);
	printf("%s\n", said(test(&cmd)));
}

static void alloc_veventq(void)
{
	struct iommu_veventq_alloc cmd = { .size = sizeof(cmd) };
	int r;

	cmd.viommu_id = rnd(9) ? guest.viommu : ioas;
	cmd.type = rnd(9) ? IOMMU_VEVENTQ_TYPE_SELFTEST : IOMMU_VEVENTQ_TYPE_DEFAULT;
	cmd.veventq_depth = rnd(9) ? rnd(4) : (1 << 19) + 1;
	cmd.__reserved = rnd(12) == 0;
	cmd.flags = rnd(12) == 0;
	r = ioctl(iommu, IOMMU_VEVENTQ_ALLOC, &cmd);
	printf("veventq of %u type %x depth %u reserved %u flags %x: %s", cmd.viommu_id, cmd.type, cmd.veventq_depth, cmd.__reserved, cmd.flags, said(r));
	printf(" id %u fd %u\n", cmd.out_veventq_id, cmd.out_veventq_fd);
	if (r)
		return;
	guest.veventq = cmd.out_veventq_id;
	guest.fd = cmd.out_veventq_fd;
}

static void event(void)
{
	struct iommu_test_cmd cmd = TEST(IOMMU_TEST_OP_TRIGGER_VEVENT, 0);

	cmd.trigger_vevent.dev_id = rnd(9) ? guest.idev : ioas;
	printf("event dev %u: ", cmd.trigger_vevent.dev_id);
	printf("%s\n", said(test(&cmd)));
}

static void read_events(void)
{
	int count = rnd(2) ? 12 * rnd(5) : rnd(65), room = PAGE, r, i;
	char *b;

	if (guest.fd < 0)
		return;
	if (rnd(3) == 0)
		room = rnd(40);
	b = buffer(room);
	r = read(guest.fd, b, count);
	printf("read veventq count %d room %d: %s", count, room, said(r));
	for (i = 0; i < r;) {
		struct iommufd_vevent_header *h = (void *)(b + i);

		i += sizeof(*h);
		printf(" [%x number %u", h->flags, h->sequence);
		if (!(h->flags & IOMMU_VEVENTQ_FLAG_LOST_EVENTS)) {
			printf(" device %x", ((struct iommu_viommu_event_selftest *)(b + i))->virt_id);
			i += sizeof(struct iommu_viommu_event_selftest);
		}
		printf("]");
	}
	printf("\n");
}

static void poll_veventq(void)
{
	if (guest.fd < 0)
		return;
	poll_one("veventq", guest.veventq, guest.fd);
	if (rnd(4))
		return;
	printf("write veventq: ");
	printf("%s\n", said(write(guest.fd, page, 8)));
}

static void destroy_veventq(void)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd), .id = guest.veventq };
	int r;

	if (!guest.veventq)
		return;
	if (guest.fd >= 0 && rnd(2)) {
		close(guest.fd);
		guest.fd = -1;
		printf("close veventq\n");
	}
	r = ioctl(iommu, IOMMU_DESTROY, &cmd);
	printf("destroy veventq: %s\n", said(r));
	if (r == 0)
		guest.veventq = 0;
}

/* What the descriptor of a fault queue is. */
static void descriptor(void)
{
	struct iommu_fault_alloc cmd = { .size = sizeof(cmd) };
	struct iommu_destroy gone = { .size = sizeof(gone) };
	char path[64], target[128];
	struct stat st;
	int r = ioctl(iommu, IOMMU_FAULT_QUEUE_ALLOC, &cmd), fd = cmd.out_fault_fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	r |= fstat(fd, &st);
	r |= readlink(path, target, sizeof(target)) < 0;
	printf("descriptor: %d id %u getfl %x getfd %x mode %o size %lld\n", r, cmd.out_fault_id, fcntl(fd, F_GETFL), fcntl(fd, F_GETFD), st.st_mode,
	       (long long)st.st_size);
	printf("lseek: %s\n", said(lseek(fd, 0, SEEK_SET)));
	printf("pread: %s\n", said(pread(fd, page, FAULT, 0)));
	printf("pwrite: %s\n", said(pwrite(fd, page, 8, 8)));
	printf("read of an empty queue: %s\n", said(read(fd, page, FAULT)));
	printf("read of nothing: %s\n", said(read(fd, page, 0)));
	printf("write of nothing: %s\n", said(write(fd, page, 0)));
	printf("answer to nobody: %s\n", said(write(fd, page, 8)));
	printf("ioctl: %s\n", said(ioctl(fd, IOMMU_DESTROY, &gone)));
	printf("mmap: %s\n", said(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	printf("read of an empty queue, not to wait: %s\n", said(read(fd, page, FAULT)));
	gone.id = cmd.out_fault_id;
	printf("destroy while open: %s\n", said(ioctl(iommu, IOMMU_DESTROY, &gone)));
	close(fd);
	printf("destroy: %s\n", said(ioctl(iommu, IOMMU_DESTROY, &gone)));
}

static const struct { unsigned weight; void (*call)(void); } calls[] = {
	{ 2, alloc_queue }, { 2, alloc_device }, { 4, alloc_table }, { 2, move }, { 5, change_pasid }, { 18, trigger }, { 2, burst },
	{ 10, read_faults }, { 9, answer }, { 2, poll_queue }, { 1, close_queue }, { 3, destroy }, { 2, move_guest }, { 3, fault_guest },
	{ 2, alloc_veventq }, { 6, event }, { 5, read_events }, { 2, poll_veventq }, { 2, destroy_veventq },
};

static void any_call(void)
{
	unsigned sum = 0, i, k;

	for (i = 0; i < COUNT(calls); i++)
		sum += calls[i].weight;
	k = rnd(sum);
	for (i = 0; k >= calls[i].weight; i++)
		k -= calls[i].weight;
	calls[i].call();
}

static void run(unsigned number, unsigned steps)
{
	struct iommu_ioas_alloc cmd = { .size = sizeof(cmd) };
	unsigned i, j;

	nqueues = ndevices = ntables = ncookies = 0;
	grpid = 1;
	iommu = open("/dev/iommu", O_RDWR);
	if (iommu < 0 || ioctl(iommu, IOMMU_IOAS_ALLOC, &cmd)) {
		perror("/dev/iommu");
		exit(1);
	}
	ioas = cmd.out_ioas_id;
	printf("run %u\n", number);
	if (number == 0)
		descriptor();
	alloc_device();
	while (nqueues < 2)
		alloc_queue();
	alloc_table();
	alloc_table();
	make_guest();
	move();
	if (number % 4 == 0) {
		for (i = 0; i < 150; i++)
			trigger();
		for (i = 0; i < 30; i++)
			read_faults();
	}
	while (steps--)
		any_call();
	for (i = 0; i < ndevices; i++) {
		for (j = 1; j < 4; j++) {
			struct iommu_test_cmd detach = TEST(IOMMU_TEST_OP_PASID_DETACH, devices[i].stdev);

			detach.pasid_detach.pasid = pasids[j];
			if (devices[i].attached[j])
				test(&detach);
		}
	}
	/* With whatever is pending: the queues' files go last, and the context with them. */
	close(iommu);
	for (i = 0; i < nqueues; i++)
		if (queues[i].fd >= 0)
			close(queues[i].fd);
	if (guest.fd >= 0)
		close(guest.fd);
}

int main(int argc, char **argv)
{
	unsigned runs, steps, i;

	if (argc != 4) {
		fprintf(stderr, "usage: events SEED RUNS STEPS\n");
		return 2;
	}
	runs = atoi(argv[2]);
	steps = atoi(argv[3]);
	page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(page + PAGE, PAGE, PROT_NONE);
	for (i = 0; i < runs; i++) {
		state = strtoull(argv[1], NULL, 0) + i;
		rnd(2);
		rnd(2);
		run(i, steps);
	}
	printf("end\n");
	return 0;
}
