"""What poll, select and epoll say of event queues, as Linux says it. Prints a line a step."""
import fcntl
import os
import select
import struct
import sys


def nr(n):
    return (ord(";") << 8) | n


IOAS_ALLOC, HWPT_ALLOC = nr(0x81), nr(0x89)
FAULT_QUEUE_ALLOC, VIOMMU_ALLOC, VDEVICE_ALLOC, VEVENTQ_ALLOC = nr(0x8E), nr(0x90), nr(0x91), nr(0x93)
TEST = nr(0xA0)
MOCK_DOMAIN, REPLACE, TRIGGER_IOPF, TRIGGER_VEVENT = 2, 10, 15, 17
SELFTEST, VEVENTQ_SELFTEST, HWPT_SELFTEST = 0xDEADBEEF, 0xBEEFBEEF, 0xDEAD
NEST_PARENT, FAULT_ID_VALID = 1, 4


def call(fd, cmd, fmt, *values):
    data = bytearray(struct.pack(fmt, struct.calcsize(fmt), *values))
    fcntl.ioctl(fd, cmd, data)
    return struct.unpack(fmt, data)


def test(fd, op, id, *words):
    words = (list(words) + [0] * 16)[:16]
    return call(fd, TEST, "=4I16I", op, id, 0, *words)


fd = os.open("/dev/iommu", os.O_RDWR)
ioas = call(fd, IOAS_ALLOC, "=3I", 0, 0)[2]
_, _, _, _, stdev, _, idev, *_ = test(fd, MOCK_DOMAIN, ioas)


def hwpt(pt, flags, fault=0, kind=0, data=b""):
    buf = bytearray(data)
    at = 0
    if data:
        import ctypes

        keep.append(ctypes.create_string_buffer(bytes(buf), len(buf)))
        at = ctypes.addressof(keep[-1])
    return call(fd, HWPT_ALLOC, "=8IQ2I", flags, idev, pt, 0, 0, kind, len(data), at, fault, 0)[4]


keep = []
ep = {}


def names(mask):
    all = [("IN", select.POLLIN), ("OUT", select.POLLOUT), ("RDNORM", select.POLLRDNORM), ("ERR", select.POLLERR), ("HUP", select.POLLHUP)]
    return "|".join(n for n, b in all if mask & b) or "0"


def ready(q):
    p = select.poll()
    p.register(q, select.POLLIN | select.POLLOUT | select.POLLRDNORM)
    r = p.poll(0)
    s = select.select([q], [q], [q], 0)
    if q not in ep:
        ep[q] = select.epoll()
        ep[q].register(q, select.EPOLLIN | select.EPOLLOUT)
    e = ep[q].poll(0)
    return "poll %s, select %s, epoll %s" % (names(r[0][1] if r else 0), "".join("rwx"[i] for i in range(3) if s[i]) or "-", names(e[0][1] if e else 0))


def why(f):
    try:
        return f()
    except OSError as e:
        return os.strerror(e.errno)


fault, q = call(fd, FAULT_QUEUE_ALLOC, "=4I", 0, 0, 0)[2:]
test(fd, REPLACE, stdev, hwpt(ioas, FAULT_ID_VALID, fault))
print("fault queue:", ready(q), "close-on-exec", not os.get_inheritable(q))
print("an empty one reads", why(lambda: os.read(q, 80)))
test(fd, TRIGGER_IOPF, 0, idev, 0, 2, 3, 0xDEADBEAF, 0)
print("a fault:", ready(q))
print("of another size:", why(lambda: os.read(q, 64)))
print("still:", ready(q))
data = os.read(q, 4000)
print("read %d bytes:" % len(data), ready(q))
print("answered:", os.write(q, struct.pack("=2I", struct.unpack_from("=I", data, 36)[0], 0)))

parent = hwpt(ioas, NEST_PARENT)
viommu = call(fd, VIOMMU_ALLOC, "=8IQ", 0, SELFTEST, idev, parent, 0, 0, 0, 0)[5]
call(fd, VDEVICE_ALLOC, "=4IQ", viommu, idev, 0, 0x99)
v = call(fd, VEVENTQ_ALLOC, "=8I", 0, viommu, VEVENTQ_SELFTEST, 2, 0, 0, 0)[6]
test(fd, REPLACE, stdev, hwpt(viommu, 0, 0, HWPT_SELFTEST, struct.pack("=I", 7)))
print("event queue:", ready(v), "fault queue:", ready(q))
r, w = os.pipe()
sys.stdout.flush()
child = os.fork()
if child == 0:
    # Waits in the real kernel until an event comes.
    os.write(w, b"x")
    os.write(1, b"child: %s\n" % names(dict(ep[v].poll(10)).get(v, 0)).encode())
    os._exit(0)
os.read(r, 1)
test(fd, TRIGGER_VEVENT, 0, idev)
os.waitpid(child, 0)
print("an event:", ready(v))
print("read %d bytes:" % len(os.read(v, 64)), ready(v))
print("nothing:", os.read(v, 64))
for i in range(4):
    test(fd, TRIGGER_VEVENT, 0, idev)
for i in range(3):
    # So long a read comes to nobody's notice: it gives one event, where Linux gives all.
    print("sequence and sender", struct.unpack("=3I", os.read(v, (3 << 20) + 4))[1:] if i < 2 else struct.unpack("=2I", os.read(v, 64)), ready(v))
for q2 in (q, v):
    d = os.dup(q2)
    os.close(q2)
    print("a copy:", ready(d))
    os.close(d)
