/** Files of /proc that tell of the described machine: fdinfo of its files, interrupts of its IOMMU. */
import { describe, expect, it } from "vitest";
import { barlink, NOTHING_LEFT } from "./support.ts";

/** What a shell script prints under barlink. */
function shell(script: string): string {
  const r = barlink(["--", "sh", "-c", script]);
  expect(r).toMatchObject({ status: 0, err: NOTHING_LEFT });
  return r.out;
}

describe("/proc/self/fdinfo", () => {
  it("is the embedded kernel's for its files, inherited ones too, and the real one's for others", () => {
    const out = shell("exec 5<>/dev/iommu 6</dev/null; cat /proc/self/fdinfo/5; echo; cat /proc/self/fdinfo/6");
    const [ours, theirs] = out.split("\n\n");
    expect(ours).toMatch(/^pos:\t0\nflags:\t0100002\nmnt_id:\t\d+\nino:\t\d+$/);
    expect(theirs).toMatch(/^pos:\t0\nflags:\t0100000\n/);
  });

  it("names a device's place in sysfs", () => {
    const out = shell("for f in /dev/vfio/devices/vfio*; do exec 5<>$f; cat /proc/thread-self/fdinfo/5; break; done");
    expect(out).toMatch(/^vfio-device-syspath: \/sys\/devices\/pci0000:00\//m);
  });

  it("fails for a descriptor that is not open", () => {
    expect(shell("cat /proc/self/fdinfo/77 2>/dev/null; echo $?")).toBe("1\n");
  });
});

describe("a type1 container", () => {
  it("maps a BAR that the program has mapped, and refuses it while the memory is switched off", () => {
    const program = `import ctypes, errno, fcntl, glob, mmap, os, struct, array
c, g = os.open("/dev/vfio/vfio", os.O_RDWR), os.open("/dev/vfio/" + os.readlink("/sys/bus/pci/devices/0000:03:00.0/iommu_group").split("/")[-1], os.O_RDWR)
fcntl.ioctl(g, 0x3b68, struct.pack("i", c))
fcntl.ioctl(c, 0x3b66, 3)
d = fcntl.ioctl(g, 0x3b6a, array.array("B", b"0000:03:00.0\\0"))
def offset(index):
    info = bytearray(struct.pack("IIIIQQ", 32, 0, index, 0, 0, 0))
    fcntl.ioctl(d, 0x3b6c, info)
    return struct.unpack("IIIIQQ", info)[5]
def memory(on): os.pwrite(d, struct.pack("H", 2 if on else 0), offset(7) + 4)
memory(True)
m = mmap.mmap(d, 8192, offset=offset(4))
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
def map(iova):
    try: return fcntl.ioctl(c, 0x3b71, struct.pack("IIQQQ", 32, 3, at, iova, 8192)) and 0 or 0
    except OSError as e: return errno.errorcode[e.errno]
print(map(0x100000))
memory(False)
print(map(0x200000))
memory(True)
print(map(0x200000))`;
    const r = barlink(["--machine", "oracle", "--", "python3", "-c", program.replaceAll("\\\\", "\\")]);
    expect(r).toMatchObject({ status: 0, out: "0\nEFAULT\n0\n", err: NOTHING_LEFT });
  });
});

describe("/proc/self/status", () => {
  it("counts the memory that a container has locked, and no longer when it is gone", () => {
    const program = `import ctypes, fcntl, glob, mmap, os, struct
c, g = os.open("/dev/vfio/vfio", os.O_RDWR), os.open(sorted(glob.glob("/dev/vfio/[0-9]*"))[0], os.O_RDWR)
fcntl.ioctl(g, 0x3b68, struct.pack("i", c))
fcntl.ioctl(c, 0x3b66, 3)
m = mmap.mmap(-1, 8192)
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
def locked(): return [l.split()[1] for l in open("/proc/self/status") if l.startswith("VmLck")][0]
print(locked())
fcntl.ioctl(c, 0x3b71, struct.pack("IIQQQ", 32, 3, at, 0x100000, 8192))
print(locked())
os.close(g)
print(locked())`;
    expect(shell(`python3 -c '${program}'`)).toBe("0\n8\n0\n");
  });
});

describe("/proc/interrupts", () => {
  it("has the machine's IOMMU once, with a number per processor, below the real interrupts", () => {
    const lines = shell("cat /proc/interrupts").split("\n");
    const cpus = lines[0]?.match(/CPU\d+/g)?.length ?? 0;
    const ours = lines.filter((l) => l.includes("dmar"));
    expect(ours).toHaveLength(1);
    expect(
      ours[0]
        ?.match(/^ *\d+:((?: +\d+)+) +DMAR-MSI +0-edge +dmar0$/)?.[1]
        ?.trim()
        .split(/ +/),
    ).toHaveLength(cpus);
  });

  it("cannot be written", () => {
    expect(shell("(echo x > /proc/interrupts) 2>/dev/null; echo $?")).not.toBe("0\n");
  });
});

describe("read(2) and write(2)", () => {
  it("are refused by files that have nothing to read and take nothing, as Linux refuses them", () => {
    const program = `import glob, os
def errno(call):
    try: return call()
    except OSError as e: return e.errno
for path in ["/dev/iommu", "/dev/vfio/vfio", sorted(glob.glob("/dev/vfio/devices/vfio*"))[0]]:
    fd = os.open(path, os.O_RDWR)
    print(errno(lambda: os.read(fd, 8)), errno(lambda: os.write(fd, b"x")), errno(lambda: os.lseek(fd, 0, 0)))`;
    expect(shell(`python3 -c '${program}'`)).toBe("22 22 29\n22 22 29\n22 22 29\n");
  });
});
