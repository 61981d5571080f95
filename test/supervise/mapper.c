// A program with a memfd at descriptor 3, for the tests of mapped BARs. One command a line, one answer a line:
//   m OFFSET LENGTH      maps it shared: the mapping's number, or -errno
//   u MAPPING            unmaps
//   r MAPPING OFF WIDTH  loads: 0x..., or SIGBUS
//   w MAPPING OFF WIDTH VALUE
//   s MAPPING OFF WIDTH VALUE OFF WIDTH MASK WANT
//                        stores, then loads until (value & MASK) == WANT: microseconds, or TIMEOUT
//   n MAPPING OFF COUNT GAP_US
//                        stores 1..COUNT to a 4-byte place, GAP_US apart: ok
//   h MAPPING OFF        stores 1, 2, 3, … until it gets SIGBUS: the last that went through
//   l MAPPING OFF        loads until it gets no SIGBUS: 0x...
//   f                    forks: the child answers from now on
//   c                    closes descriptor 3
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static sigjmp_buf env;
static void on_bus(int sig) { (void)sig; siglongjmp(env, 1); }

static uint64_t load(volatile char *p, int width)
{
	switch (width) {
	case 1: return *(volatile uint8_t *)p;
	case 2: return *(volatile uint16_t *)p;
	case 4: return *(volatile uint32_t *)p;
	default: return *(volatile uint64_t *)p;
	}
}

static void store(volatile char *p, int width, uint64_t v)
{
	switch (width) {
	case 1: *(volatile uint8_t *)p = v; break;
	case 2: *(volatile uint16_t *)p = v; break;
	case 4: *(volatile uint32_t *)p = v; break;
	default: *(volatile uint64_t *)p = v;
	}
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(void)
{
	static struct { volatile char *p; size_t n; } maps[64];
	int nmaps = 0;
	char line[256];
	struct sigaction sa = { .sa_handler = on_bus };
	sigaction(SIGBUS, &sa, 0);
	setvbuf(stdout, 0, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin)) {
		unsigned long long a[8] = { 0 };
		int n = sscanf(line + 1, "%lli %lli %lli %lli %lli %lli %lli %lli", (long long *)a, (long long *)a + 1, (long long *)a + 2,
			(long long *)a + 3, (long long *)a + 4, (long long *)a + 5, (long long *)a + 6, (long long *)a + 7);
		(void)n;
		if (sigsetjmp(env, 1)) { puts("SIGBUS"); continue; }
		switch (line[0]) {
		case 'm': {
			void *p = mmap(0, a[1], PROT_READ | PROT_WRITE, MAP_SHARED, 3, a[0]);
			if (p == MAP_FAILED) { printf("%d\n", -errno); break; }
			maps[nmaps].p = p; maps[nmaps].n = a[1];
			printf("%d\n", nmaps++);
			break;
		}
		case 'u': printf("%d\n", munmap((void *)maps[a[0]].p, maps[a[0]].n)); break;
		case 'r': printf("0x%llx\n", (unsigned long long)load(maps[a[0]].p + a[1], a[2])); break;
		case 'w': store(maps[a[0]].p + a[1], a[2], a[3]); puts("ok"); break;
		case 's': {
			uint64_t start = now_ns();
			store(maps[a[0]].p + a[1], a[2], a[3]);
			for (;;) {
				if ((load(maps[a[0]].p + a[4], a[5]) & a[6]) == a[7]) { printf("%.1f\n", (now_ns() - start) / 1000.0); break; }
				if (now_ns() - start > 3000000000ull) { puts("TIMEOUT"); break; }
				// Leaves the processor to whoever looks.
				struct timespec t = { 0, 20000 };
				nanosleep(&t, 0);
			}
			break;
		}
		case 'n':
			for (unsigned i = 1; i <= a[2]; i++) {
				store(maps[a[0]].p + a[1], 4, i);
				if (a[3] > 0) { struct timespec t = { 0, a[3] * 1000 }; nanosleep(&t, 0); }
			}
			puts("ok");
			break;
		case 'h': {
			static volatile uint64_t last;
			last = 0;
			if (sigsetjmp(env, 1)) { printf("0x%llx\n", (unsigned long long)last); break; }
			for (;;) { store(maps[a[0]].p + a[1], 8, last + 1); last++; }
		}
		case 'l': {
			uint64_t start = now_ns();
			if (sigsetjmp(env, 1) && now_ns() - start > 5000000000ull) { puts("SIGBUS"); break; }
			printf("0x%llx\n", (unsigned long long)load(maps[a[0]].p + a[1], 8));
			break;
		}
		case 'f': {
			int pid = fork();
			if (pid == 0) { printf("%d\n", getpid()); break; }
			int status;
			waitpid(pid, &status, 0);
			return 0;
		}
		case 'c': printf("%d\n", close(3)); break;
		default: puts("?");
		}
	}
	return 0;
}
