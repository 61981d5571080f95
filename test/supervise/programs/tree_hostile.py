"""
Tries to get by way of the tree at what it may not have; prints what came of it as JSON.
argv[1]: a file that this user cannot read; argv[2]: what is in it.
"""
import ctypes, glob, json, mmap, os, sys, threading, time

secret, content = sys.argv[1], sys.argv[2].encode()
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
V = b"/sys/bus/pci/devices/0000:01:00.0/vendor"
out = {}


def call(nr, *args):
    r = libc.syscall(nr, *[ctypes.c_void_p(a) if isinstance(a, int) else a for a in args])
    return r if r >= 0 else -ctypes.get_errno()


OPENAT, STAT, READLINK, WRITE, STATX, GETCWD, OPENAT2, ACCESS, WRITEV = 257, 4, 89, 1, 332, 79, 437, 21, 20
BAD = 0x10
CWD = ctypes.c_void_p(-100 & 0xFFFFFFFFFFFFFFFF)

# Pointers.
page = mmap.mmap(-1, 8192)
base = ctypes.addressof(ctypes.c_char.from_buffer(page))
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect(base + 4096, 4096, 0)
ctypes.memmove(base + 4096 - len(V), V, len(V))
out["path_at_null"] = call(OPENAT, CWD, 0, 0, 0)
out["path_unmapped"] = call(OPENAT, CWD, BAD, 0, 0)
out["path_into_a_hole"] = call(OPENAT, CWD, base + 4096 - len(V), 0, 0)
ctypes.memmove(base + 4095 - len(V), V + b"\0", len(V) + 1)
out["path_up_to_a_hole"] = call(OPENAT, CWD, base + 4095 - len(V), 0, 0) >= 0
out["too_long"] = call(OPENAT, CWD, b"/sys/bus/pci/" + b"a/" * 3000, 0, 0)
out["too_many_dots"] = call(OPENAT, CWD, b"/sys/bus/pci" + b"/.." * 1000 + V, 0, 0) >= 0
out["stat_into_null"] = call(STAT, V, 0)
out["stat_into_a_hole"] = call(STAT, V, base + 4096 - 8)
out["statx_into_null"] = call(STATX, CWD, V, 0, 0x7FF, BAD)
out["readlink_into_null"] = call(READLINK, b"/sys/bus/pci/devices/0000:01:00.0", BAD, 100)
out["how_unmapped"] = call(OPENAT2, CWD, V, BAD, 24)
try:
    w = os.open("/sys/bus/pci/drivers/vfio-pci/bind", os.O_WRONLY)
    out["bind"] = "opened"
except OSError as e:
    w = 0
    out["bind"] = e.errno
out["write_from_null"] = call(WRITE, w, BAD, 12)
out["write_from_a_hole"] = call(WRITE, w, base + 4090, 12)
out["iovec_unmapped"] = call(WRITEV, w, BAD, 1)

# By way of the tree, with no race.
tries = [
    "/sys/bus/pci/../../.." + secret,
    "/sys/bus/pci/devices/0000:01:00.0/../../../../../../.." + secret,
    "/sys/bus/pci/devices/0000:01:00.0/driver/../../../../.." + secret,
    "/dev/vfio/../.." + secret,
    "//sys//bus/pci/./../../.././" + secret,
    "/proc/self/root/sys/bus/pci/../../.." + secret,
]
fd = os.open("/sys/bus/pci/devices/0000:01:00.0", os.O_RDONLY)
got = []


def attempt(f):
    try:
        x = f()
        data = os.read(x, 100)
        os.close(x)
        if content in data:
            got.append(data.decode())
        return "opened"
    except OSError as e:
        return e.errno


out["straight"] = [attempt(lambda p=p: os.open(p, os.O_RDONLY)) for p in tries]
out["relative"] = attempt(lambda: os.open("../../../../../../.." + secret, os.O_RDONLY, dir_fd=fd))
os.chdir("/sys/bus/pci/devices")
out["from_cwd"] = attempt(lambda: os.open("../../../.." + secret, os.O_RDONLY))
os.chdir("/tmp")
out["through_proc_fd"] = attempt(lambda: os.open("/proc/self/fd/%d/../../../../../../..%s" % (fd, secret), os.O_RDONLY))
out["write_outside"] = attempt(lambda: os.open("/sys/bus/pci/../../../etc/barlink-test", os.O_WRONLY | os.O_CREAT))
out["device_outside"] = attempt(lambda: os.open("/sys/bus/pci/../../../dev/null", os.O_WRONLY))

# The path changes while it is looked at.
size = 200
buf = ctypes.create_string_buffer(size)
stop = False
paths = [V + b"\0", secret.encode() + b"\0", b"/sys/bus/pci/../../.." + secret.encode() + b"\0"]


def flip():
    i = 0
    while not stop:
        p = paths[i % 3]
        ctypes.memmove(buf, p, len(p))
        i += 1


threading.Thread(target=flip, daemon=True).start()
end = time.time() + 1.0
opened = 0
while time.time() < end:
    r = call(OPENAT, CWD, ctypes.addressof(buf), 0, 0)
    if r >= 0:
        opened += 1
        data = os.read(r, 100)
        if content in data:
            got.append("by a race of the path")
        os.close(r)
stop = True
out["raced_path_opened"] = opened > 0

# A link changes where it leads.
d = "/tmp/barlink-race-%d" % os.getpid()
os.mkdir(d)
stop = False
targets = ["/sys/bus/pci/devices/0000:01:00.0", os.path.dirname(secret), "/sys/bus/pci/../../.." + os.path.dirname(secret)]


def relink():
    i = 0
    while not stop:
        try:
            os.symlink(targets[i % 3], d + "/new")
            os.rename(d + "/new", d + "/pci")
        except OSError:
            pass
        i += 1


t = threading.Thread(target=relink)
t.start()
end = time.time() + 1.0
while time.time() < end:
    for name in ("vendor", os.path.basename(secret)):
        attempt(lambda: os.open(d + "/pci/" + name, os.O_RDONLY))
stop = True
t.join()
for n in os.listdir(d):
    os.unlink(d + "/" + n)
os.rmdir(d)

# The private folder itself: what the user may change there leads nowhere.
planted = 0
link = os.readlink("/proc/self/task/%d/fd/%d" % (threading.get_native_id(), os.open("/sys/bus/pci", os.O_RDONLY)))
for folder in glob.glob(link.split("/tree/")[0] + "/tree/sys/bus/pci"):
    try:
        os.rename(folder + "/devices", folder + "/was")
        os.symlink(os.path.dirname(secret), folder + "/devices")
        planted += 1
    except OSError:
        pass
out["planted"] = planted
out["after_planting"] = attempt(lambda: os.open("/sys/bus/pci/devices", os.O_RDONLY | os.O_DIRECTORY))
out["still_serves"] = attempt(lambda: os.open(V.decode(), os.O_RDONLY))
out["got"] = got
print(json.dumps(out))
