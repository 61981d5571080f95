"""For `npm run conformance -- stress`: an address space, pinned memory, a child and threads, from Python."""
import ctypes
import fcntl
import mmap
import os
import struct
import subprocess
import sys
import threading

IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP = 0x3B81, 0x3B85, 0x3B86


def call(fd, request, fmt, *values):
    data = bytearray(struct.pack(fmt, *values))
    fcntl.ioctl(fd, request, data)
    return struct.unpack(fmt, data)


def work(fd, rounds):
    memory = mmap.mmap(-1, 65536)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ioas = call(fd, IOAS_ALLOC, "<3I", 12, 0, 0)[2]
    for _ in range(rounds):
        iova = call(fd, IOAS_MAP, "<4I3Q", 40, 6, ioas, 0, address, 65536, 0)[6]
        assert call(fd, IOAS_UNMAP, "<2I2Q", 24, ioas, iova, 65536)[3] == 65536


fd = os.open("/dev/iommu", os.O_RDWR)
threads = [threading.Thread(target=work, args=(fd, 200)) for _ in range(4)]
for t in threads:
    t.start()
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
for t in threads:
    t.join()
print("done")
