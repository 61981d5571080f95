"""Run under barlink: what a device does to this program's memory. Prints one JSON object."""
import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import struct
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_ssize_t
libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
libc.munmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_size_t]
PAGE = 4096
RW, SHARED, PRIVATE, FIXED, ANON = 3, 1, 2, 16, 32


def checked(r):
    if r == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r


def mmap(length, flags=PRIVATE | ANON, fd=-1, addr=0, prot=RW):
    return checked(libc.mmap(addr, length, prot, flags, fd, 0))


def munmap(addr, length):
    checked(libc.munmap(addr, length))


def peek(addr, n):
    return ctypes.string_at(addr, n).decode(errors="replace")


def poke(addr, text):
    ctypes.memmove(addr, text.encode(), len(text))


def call(fd, number, fmt, *values):
    """An iommufd or VFIO ioctl whose struct begins with its size."""
    arg = bytearray(struct.pack("=I" + fmt, struct.calcsize("=I" + fmt), *values))
    fcntl.ioctl(fd, (0x3B << 8) | number, arg)
    return struct.unpack("=I" + fmt, arg)


def outcome(f, *args):
    try:
        f(*args)
        return "ok"
    except OSError as e:
        return errno.errorcode[e.errno]


class Edu:
    """The one device that copies memory: QEMU's edu, through VFIO."""

    def __init__(self, iommufd, ioas):
        root = "/sys/bus/pci/devices/"
        [at] = [d for d in os.listdir(root) if open(root + d + "/device").read().strip() == "0x11e8"]
        self.fd = os.open("/dev/vfio/devices/" + os.listdir(root + at + "/vfio-dev")[0], os.O_RDWR)
        call(self.fd, 118, "IiI", 0, iommufd, 0)
        call(self.fd, 119, "II", 0, ioas)
        self.bar = self.region(0)
        os.pwrite(self.fd, struct.pack("<H", 6), self.region(7) + 4)

    def region(self, index):
        return call(self.fd, 108, "IIIQQ", 0, index, 0, 0, 0)[5]

    def copy(self, src, dst, n, command):
        for register, value in ((0x80, src), (0x88, dst), (0x90, n), (0x98, command)):
            os.pwrite(self.fd, struct.pack("<Q", value), self.bar + register)
        while struct.unpack("<Q", os.pread(self.fd, 8, self.bar + 0x98))[0] & 1:
            time.sleep(0.001)

    def fetch(self, iova, n):
        self.copy(iova, 0x40000, n, 1)

    def store(self, iova, n):
        self.copy(0x40000, iova, n, 3)


iommufd = os.open("/dev/iommu", os.O_RDWR)
ioas = call(iommufd, 0x81, "II", 0, 0)[2]
edu = Edu(iommufd, ioas)
results = {}


def map_memory(addr, length, iova):
    call(iommufd, 0x85, "IIIQQQ", 7, ioas, 0, addr, length, iova)


def map_file(fd, start, length, iova):
    call(iommufd, 0x8F, "IIiQQQ", 7, ioas, fd, start, length, iova)


def unmap(iova, length):
    return call(iommufd, 0x86, "IQQ", ioas, iova, length)[3]


if sys.argv[1:] == ["killed"]:
    # A child dies with private pages pinned; then this program does.
    child = os.fork()
    if child == 0:
        lost = mmap(2 * PAGE)
        poke(lost, "gone")
        map_memory(lost, 2 * PAGE, 0x600000)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    other = mmap(PAGE)
    map_memory(other, PAGE, 0x200000)
    edu.fetch(0x600000, 4)
    edu.store(0x200000, 4)
    print(json.dumps([peek(other, 4) == "gone", unmap(0x600000, 2 * PAGE)]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

# Private memory: what the device reads, and what it writes.
a = mmap(4 * PAGE)
poke(a + PAGE, "from the program")
map_memory(a, 4 * PAGE, 0x100000)
edu.fetch(0x101000, 16)
edu.store(0x103000, 16)
results["private"] = peek(a + 3 * PAGE, 16)

# It is unmapped under the device, and another mapping takes its address.
poke(a, "left behind")
munmap(a, 4 * PAGE)
mmap(4 * PAGE, PRIVATE | ANON | FIXED, -1, a)
edu.store(0x101000, 16)
results["stranger"] = peek(a + PAGE, 16) == "\0" * 16
edu.fetch(0x100000, 11)
other = mmap(PAGE)
map_memory(other, PAGE, 0x200000)
edu.store(0x200000, 11)
results["left behind"] = peek(other, 11)

# A shared mapping is its file's.
memfd = os.memfd_create("shared", os.MFD_ALLOW_SEALING)
os.ftruncate(memfd, 4 * PAGE)
s = mmap(4 * PAGE, SHARED, memfd)
map_memory(s, 4 * PAGE, 0x300000)
munmap(s, 4 * PAGE)
edu.store(0x302000, 11)
results["shared"] = os.pread(memfd, 11, 2 * PAGE).decode()
map_file(memfd, 0, 4 * PAGE, 0x400000)
os.pwrite(memfd, b"through the file", PAGE)
edu.fetch(0x401000, 16)
edu.store(0x303000, 16)
results["file"] = os.pread(memfd, 16, 3 * PAGE).decode()

# What is refused, and why.
pipe = os.pipe()[0]
results["refused"] = [
    outcome(map_file, memfd, 0, 5 * PAGE, 0x500000),
    outcome(map_file, pipe, 0, PAGE, 0x500000),
    outcome(map_file, os.open("/dev/null", os.O_RDWR), 0, PAGE, 0x500000),
    outcome(map_file, 999, 0, PAGE, 0x500000),
    outcome(map_file, os.open("/proc/self/fd/%d" % memfd, os.O_PATH), 0, PAGE, 0x500000),
]
h = mmap(3 * PAGE)
munmap(h + PAGE, PAGE)
hole = outcome(map_memory, h, 3 * PAGE, 0x500000)
r = mmap(PAGE, prot=1)
n = mmap(PAGE, prot=0)
results["faults"] = [hole, outcome(map_memory, r, PAGE, 0x500000), outcome(map_memory, n, PAGE, 0x500000), outcome(map_memory, 0, PAGE, 0x500000)]


# Pointers that lead nowhere, or end too early.
def raw(arg):
    return errno.errorcode[ctypes.get_errno()] if libc.ioctl(iommufd, 0x3B81, arg) == -1 else "ok"


edge = mmap(2 * PAGE)
munmap(edge + PAGE, PAGE)
ctypes.memmove(edge + PAGE - 12, struct.pack("=III", 12, 0, 0), 12)
ctypes.memmove(edge + PAGE - 24, struct.pack("=I", 12), 4)
fits = raw(edge + PAGE - 12)
ctypes.memmove(edge + PAGE - 8, struct.pack("=II", 12, 0), 8)
results["pointers"] = [fits, raw(edge + PAGE - 8), raw(edge + PAGE - 2), raw(8), raw(0), raw(2**64 - 4096), raw(2**47), raw(n), raw(r)]

# udmabuf of a memfd of this program.
u = os.open("/dev/udmabuf", os.O_RDWR)


def udmabuf(fd):
    return fcntl.ioctl(u, 0x40187542, bytearray(struct.pack("=IIQQ", fd, 1, 0, 4 * PAGE)))


unsealed = outcome(udmabuf, memfd)
fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
results["udmabuf"] = [unsealed, os.readlink("/proc/self/fd/%d" % udmabuf(memfd)) != "", outcome(udmabuf, pipe)]

# A buffer of the system heap: the program's mapping and the device see the same bytes.
heap = os.open("/dev/dma_heap/system", os.O_RDWR)
allocation = bytearray(struct.pack("=QIIQ", 3 * PAGE, 0, os.O_RDWR, 0))
fcntl.ioctl(heap, 0xC0184800, allocation)
buffer = struct.unpack("=QIIQ", allocation)[1]
b = mmap(3 * PAGE, SHARED, buffer)
poke(b + PAGE, "heap")
b2 = mmap(3 * PAGE, SHARED, buffer)
results["heap"] = [peek(b2 + PAGE, 4), peek(b, 4) == "\0" * 4, outcome(mmap, 4 * PAGE, SHARED, buffer), outcome(map_memory, b, PAGE, 0x500000)]
munmap(b, 3 * PAGE)
munmap(b2, 3 * PAGE)
b = mmap(3 * PAGE, SHARED, buffer)
results["heap"].append(peek(b + PAGE, 4))
results["udmabuf"].append(outcome(mmap, 4 * PAGE, SHARED, udmabuf(memfd)))

# A child's memory outlives the child, for the device.
child = os.fork()
if child == 0:
    c = mmap(PAGE)
    poke(c, "last words")
    map_memory(c, PAGE, 0x600000)
    os._exit(0)
os.waitpid(child, 0)
edu.fetch(0x600000, 10)
edu.store(0x200000, 10)
results["child"] = peek(other, 10)

# Limits count for who holds no CAP_IPC_LOCK.
if os.geteuid() == 0:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (16 * PAGE, 16 * PAGE))
    big = mmap(64 * PAGE)
    as_root = outcome(map_memory, big, 64 * PAGE, 0x700000)
    unmap(0x700000, 64 * PAGE)
    os.setresuid(65534, 65534, 65534)
    results["memlock"] = [as_root, outcome(map_memory, big, 64 * PAGE, 0x700000), outcome(map_memory, big, 16 * PAGE, 0x700000)]

print(json.dumps(results))
