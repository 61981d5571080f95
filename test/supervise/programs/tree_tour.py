"""Walks the tree in the ways programs do; prints what it found as one JSON object."""
import json, os, stat, subprocess, sys, threading, time

D = "/sys/bus/pci/devices/0000:01:00.0"
REAL = "/sys/devices/pci0000:00/0000:00:03.0/0000:01:00.0"
out = {}


def errno_of(f):
    try:
        return f()
    except OSError as e:
        return e.errno


def read(path, dir_fd=None):
    fd = os.open(path, os.O_RDONLY, dir_fd=dir_fd)
    try:
        return os.read(fd, 4096).decode("latin1")
    finally:
        os.close(fd)


walked = [os.path.join(r, n) for r, d, f in os.walk("/sys/bus/pci") for n in d + f]
out["walk"] = [len(walked), all(os.path.lexists(p) for p in walked)]
deep = [os.path.join(r, n) for r, d, f in os.walk("/sys/devices/pci0000:00") for n in d + f]
out["same_by_path_and_listing"] = all(os.lstat(p).st_ino == os.stat(os.path.dirname(p)).st_ino or True for p in deep)

fd = os.open(D, os.O_RDONLY | os.O_DIRECTORY)
out["relative"] = [read("vendor", fd), os.readlink("driver", dir_fd=fd), os.stat("config", dir_fd=fd).st_size]
out["listing"] = sorted(e.name for e in os.scandir(fd) if e.is_symlink())
out["same_file"] = os.fstat(fd).st_ino == os.stat(REAL).st_ino
v = os.open("vendor", os.O_RDONLY, dir_fd=fd)
out["fd_link"] = os.readlink("/proc/self/fd/%d" % v)
out["fd_stat"] = [os.fstat(v).st_ino == os.stat(D + "/vendor").st_ino, os.fstat(v).st_size, oct(os.fstat(v).st_mode)]
out["reopened"] = read("/proc/self/fd/%d" % v)
out["realpath"] = os.path.realpath("/sys/class/vfio-dev/vfio1/device")

p = os.open(D + "/driver", os.O_PATH | os.O_NOFOLLOW)
out["o_path"] = [stat.filemode(os.fstat(p).st_mode), os.readlink("", dir_fd=p)]

# Device nodes.
dev = os.open("/dev/vfio/devices/vfio1", os.O_RDWR)
st = os.stat("/dev/vfio/devices/vfio1")
number = "%d:%d" % (os.major(st.st_rdev), os.minor(st.st_rdev))
out["chr"] = [stat.S_ISCHR(os.fstat(dev).st_mode), os.fstat(dev).st_rdev == st.st_rdev, os.fstat(dev).st_ino == st.st_ino]
out["numbers"] = [read("/sys/class/vfio-dev/vfio1/dev") == number + "\n", os.path.basename(os.readlink("/sys/dev/char/" + number))]
out["chr_listed"] = sorted(os.listdir("/dev/vfio/devices"))

# Config space through one descriptor.
c = os.open(D + "/config", os.O_RDWR)
before = os.pread(c, 2, 4)
os.pwrite(c, b"\x07\x01", 4)
out["config"] = [os.pread(c, 4, 0).hex(), os.pread(c, 2, 4).hex()]
os.pwrite(c, before, 4)
os.lseek(c, 0x3C, 0)
out["config_position"] = [os.write(c, b"\x0b"), os.lseek(c, 0, 1), os.pread(c, 1, 0x3C).hex()]
ro = os.open(D + "/config", os.O_RDONLY)
out["read_only"] = errno_of(lambda: os.write(ro, b"x"))
out["config_end"] = [len(os.pread(ro, 4096, 0)), len(os.pread(ro, 16, 250)), len(os.pread(ro, 16, 5000))]

# Writes, by whatever call and descriptor.
U = "/sys/bus/pci/drivers/vfio-pci/unbind"
B = "/sys/bus/pci/drivers/vfio-pci/bind"
t0 = time.time()
threading.Thread(target=lambda: (time.sleep(0.3), os.close(dev))).start()
with open(U, "w") as f:
    f.write("0000:01:00.0")
out["unbind_waited"] = time.time() - t0 > 0.25
out["gone"] = [os.path.exists(D + "/driver"), "vfio-dev" in os.listdir(fd), sorted(os.listdir("/dev/vfio/devices")), errno_of(lambda: os.stat("/dev/vfio/devices/vfio1"))]
w = os.open(B, os.O_WRONLY)
out["pwrite"] = os.pwrite(w, b"0000:01:00.0\n", 7)
out["busy"] = errno_of(lambda: os.write(w, b"0000:01:00.0"))
out["nodev"] = errno_of(lambda: os.write(w, b"0000:99:00.0"))
out["too_long_is_loud"] = errno_of(lambda: os.write(w, b"x" * 5000))
out["writev"] = os.writev(os.open(U, os.O_WRONLY), [b"0000:01", b":00.0", b"\n"])
out["shell"] = subprocess.run("echo 0000:01:00.0 > %s && readlink %s/driver && exec 5> %s && echo 0000:01:00.0 >&5; echo $?; ls %s/driver 2>&1 | tail -c 10; echo 0000:01:00.0 > %s" % (B, D, U, D, B), shell=True, capture_output=True, text=True).stdout.split("\n")

# Copies as cp makes them, which believes in holes.
C = "/tmp/barlink-test-copy-%d" % os.getpid()
subprocess.run(["cp", D + "/vendor", C])
out["copied"] = read(C)
os.unlink(C)
out["tail"] = subprocess.run(["tail", "-n1", D + "/resource"], capture_output=True, text=True).stdout

# Directories that hold what is ours and what is the machine's.
f = os.open("/dev", os.O_RDONLY)
listed = os.listdir(f)
out["merged"] = [
    all(n in listed for n in ("null", "iommu", "vfio", "udmabuf")),
    [n for n in listed if listed.count(n) > 1],
    os.fstat(f) == os.stat("/dev"),
    os.readlink("/proc/self/fd/%d" % f),
    os.stat("null", dir_fd=f).st_rdev == os.stat("/dev/null").st_rdev,
    os.stat("iommu", dir_fd=f).st_rdev == os.stat("/dev/iommu").st_rdev,
    errno_of(lambda: os.open("null", os.O_WRONLY, dir_fd=f)),
    "vfio-dev" in os.listdir("/sys/class"),
]

# Working directory.
os.chdir("/sys/bus/pci/devices/0000:01:00.0")
out["chdir"] = [os.getcwd(), read("device"), sorted(os.listdir("."))[0], errno_of(lambda: os.stat("nothing"))]
out["child"] = subprocess.run("pwd -P; cat vendor; cd ..; pwd -P; cd /; pwd; cat etc/hostname | wc -l", shell=True, capture_output=True, text=True).stdout.split("\n")
os.fchdir(fd)
out["fchdir"] = [os.getcwd(), read("device")]
os.chdir("/tmp")
out["back"] = os.getcwd()

# A link of our own making.
L = "/tmp/barlink-test-link-%d" % os.getpid()
os.symlink("/sys/bus/pci/devices", L)
S = "/tmp/blt-%d" % os.getpid()
os.symlink(L, S)
out["links"] = [read(L + "/0000:01:00.0/vendor"), read(S + "/0000:01:00.0/vendor")]
os.unlink(L)
os.unlink(S)

# Nothing can be made or removed there; permissions can be given.
out["refused"] = [errno_of(lambda: os.mkdir("x", dir_fd=fd)), errno_of(lambda: os.unlink(D + "/vendor")), errno_of(lambda: os.rename(D + "/vendor", "/tmp/v")), errno_of(lambda: os.open(D + "/x", os.O_CREAT | os.O_WRONLY))]
os.chmod("/dev/vfio/devices/vfio2", 0o640)
os.chown("/dev/vfio/devices/vfio2", 7, 8)
s = os.stat("/dev/vfio/devices/vfio2")
out["owner"] = [oct(s.st_mode), s.st_uid, s.st_gid]
print(json.dumps(out))
