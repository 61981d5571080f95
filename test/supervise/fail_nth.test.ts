/** Fault injection as a real program finds it: the knobs of debugfs, and fail-nth of its threads. With the selftest only. */
import { describe, expect, it } from "vitest";
import { barlink, NOTHING_LEFT } from "./support.ts";

/** What a shell script prints under barlink with the selftest. */
function shell(script: string, ...options: string[]): string {
  const r = barlink(["--selftest", ...options, "--", "sh", "-c", script]);
  expect(r).toMatchObject({ status: 0, err: NOTHING_LEFT });
  return r.out;
}

function python(program: string): string {
  const r = barlink(["--selftest", "--", "python3", "-c", program]);
  expect(r).toMatchObject({ status: 0, err: NOTHING_LEFT });
  return r.out;
}

describe("/sys/kernel/debug", () => {
  it("lists the directories of fault injection, and what is in one", () => {
    expect(shell("ls /sys/kernel/debug; ls -l /sys/kernel/debug/failslab | awk 'NR > 1 { print $1, $5, $9 }'")).toBe(
      `fail_iommufd
fail_page_alloc
fail_usercopy
failslab
-rw------- 0 cache-filter
-rw------- 0 ignore-gfp-wait
-rw------- 0 interval
-rw------- 0 probability
-rw------- 0 space
-rw------- 0 task-filter
-rw------- 0 times
-rw------- 0 verbose
-rw------- 0 verbose_ratelimit_burst
-rw------- 0 verbose_ratelimit_interval_ms
`,
    );
  });

  it("shows what is set, and takes numbers and truth values as debugfs does", () => {
    const script = `cd /sys/kernel/debug/fail_page_alloc
cat probability times ignore-gfp-wait min-order
echo 0x10 > probability; echo -1 > times; echo no > ignore-gfp-wait; echo what > ignore-gfp-highmem; echo 3 > min-order
cat probability times ignore-gfp-wait ignore-gfp-highmem min-order
echo x > interval 2>/dev/null || echo refused`;
    expect(shell(script)).toBe("0\n1\nY\n1\n16\n-1\nN\nY\n3\nrefused\n");
  });

  it("is not there without the selftest", () => {
    const r = barlink(["--", "sh", "-c", "ls -d /sys/kernel/debug/failslab /proc/self/fail-nth 2>/dev/null || true"]);
    expect(r).toMatchObject({ status: 0, out: "", err: NOTHING_LEFT });
  });
});

describe("fail-nth", () => {
  const prelude = `import errno, fcntl, os, struct, threading
debug = os.open("/sys/kernel/debug", os.O_RDONLY)
for k in ("failslab/ignore-gfp-wait", "failslab/verbose", "fail_usercopy/verbose", "fail_iommufd/verbose"):
    f = os.open(k, os.O_WRONLY, dir_fd=debug); os.write(f, b"0"); os.close(f)
def tell(f): return os.pread(f, 300, 0).decode().strip()
def name(call):
    try: return call() and 0 or 0
    except OSError as e: return errno.errorcode[e.errno]
fd = os.open("/dev/iommu", os.O_RDWR)
def ioas(): return fcntl.ioctl(fd, 0x3b81, bytearray(struct.pack("III", 12, 0, 0)))
nth = os.open("/proc/self/task/%d/fail-nth" % threading.get_native_id(), os.O_RDWR)
`;

  it("has the n-th copy or allocation of IOAS_ALLOC fail, each once", () => {
    const out = python(`${prelude}
for n in range(1, 7):
    os.pwrite(nth, b"%d" % n, 0)
    e = name(ioas)
    print(n, e, name(lambda: print(tell(nth), end=" ")))
    name(lambda: os.pwrite(nth, b"0", 0)); os.pwrite(nth, b"0", 0)`);
    // The command is copied in, the object and its entry are made, the answer is copied out. A read of fail-nth is a copy too.
    expect(out).toBe("0 1 EFAULT 0\n0 2 ENOMEM 0\n0 3 ENOMEM 0\n0 4 EFAULT 0\n5 0 EFAULT\n2 6 0 0\n");
  });

  it("is one thread's: another is not touched", () => {
    const out = python(`${prelude}
os.pwrite(nth, b"1", 0)
other = []
t = threading.Thread(target=lambda: other.append(name(ioas)))
t.start(); t.join()
print(other[0], name(ioas))`);
    expect(out).toBe("0 EFAULT\n");
  });

  it("is reached through /proc/self, /proc/PID and /proc/thread-self, of one's own threads only", () => {
    const out = python(`${prelude}
for p in ("self", os.getpid(), "thread-self", "self/task/%d" % os.getpid()):
    print(name(lambda: os.close(os.open("/proc/%s/fail-nth" % p, os.O_RDONLY))))
print(name(lambda: os.open("/proc/1/fail-nth", os.O_RDONLY)), name(lambda: os.open("/proc/self/task/1/fail-nth", os.O_RDONLY)))`);
    expect(out).toBe("0\n0\n0\n0\nENOENT ENOENT\n");
  });

  it("is kept by exec, and make-it-fail by children too", () => {
    expect(
      shell(`echo 1 > /proc/self/make-it-fail; cat /proc/$$/make-it-fail
echo 1 > /proc/$$/make-it-fail; sh -c 'cat /proc/self/make-it-fail; echo 9 > /proc/$$/fail-nth; exec cat /proc/self/fail-nth'`),
    ).toBe("1\n1\n9\n");
  });

  it("starts at 0 in a child, and does not fail the parent for it", () => {
    const out = python(`${prelude}
os.pwrite(nth, b"2", 0)
pid = os.fork()
if pid == 0:
    print("child", open("/proc/self/fail-nth").read().strip(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(name(ioas))`);
    expect(out).toBe("child 0\nENOMEM\n");
  });
});
