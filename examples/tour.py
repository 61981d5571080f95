#!/usr/bin/env python3
"""The tour's work as a plain VFIO/iommufd program: nothing in it knows of barlink.

    npx barlink run -- python3 tour.py 0000:01:00.0 0000:05:00.0

The first device is an `edu` DMA engine, the second an NVMe controller with a persistent memory region in BAR 4.
"""
import errno
import fcntl
import mmap
import os
import struct
import sys
import time

GET_REGION_INFO, RESET, FEATURE, BIND, ATTACH = (0x3B00 + 100 + n for n in (8, 11, 17, 18, 19))
IOAS_ALLOC, IOAS_UNMAP, IOAS_MAP_FILE = 0x3B81, 0x3B86, 0x3B8F
FIXED_RW = 1 | 2 | 4
RAM_IOVA, BAR_IOVA, LENGTH, BYTES = 0x1000000, 0x2000000, 0x200000, 256
CONFIG, PMR, PMRCTL, EDU_BUFFER = 7, 4, 0xE04, 0x40000


def call(fd, request, fmt, *values):
    """One ioctl over a packed struct; its members after the call."""
    data = bytearray(struct.pack(fmt, *values))
    fcntl.ioctl(fd, request, data)
    return struct.unpack(fmt, data)


def must(holds, what):
    print("ok  " if holds else "FAIL", what)
    if not holds:
        sys.exit(1)


class Device:
    def __init__(self, address):
        (name,) = (n for n in os.listdir(f"/sys/bus/pci/devices/{address}/vfio-dev") if n.startswith("vfio"))
        self.fd = os.open(f"/dev/vfio/devices/{name}", os.O_RDWR | os.O_CLOEXEC)

    def region(self, index):
        """Size and offset of a region."""
        return call(self.fd, GET_REGION_INFO, "<4I2Q", 32, 0, index, 0, 0, 0)[4:]

    def get(self, index, at, length):
        return os.pread(self.fd, length, self.region(index)[1] + at)

    def put(self, index, at, data):
        os.pwrite(self.fd, data, self.region(index)[1] + at)

    def command(self, set_bits=0, clear_bits=0):
        (old,) = struct.unpack("<H", self.get(CONFIG, 4, 2))
        self.put(CONFIG, 4, struct.pack("<H", (old | set_bits) & ~clear_bits))


def dma(edu, iova):
    """RAM to the engine's buffer, then from there to `iova`."""
    for source, destination, command in ((RAM_IOVA, EDU_BUFFER, 1), (EDU_BUFFER, iova, 3)):
        for at, value in ((0x80, source), (0x88, destination), (0x90, BYTES)):
            edu.put(0, at, struct.pack("<Q", value))
        edu.put(0, 0x98, struct.pack("<I", command))
        while struct.unpack("<I", edu.get(0, 0x98, 4))[0] & 1:
            time.sleep(0.001)


def map_file(iommufd, ioas, fd, length, iova):
    call(iommufd, IOAS_MAP_FILE, "<3Ii3Q", 40, FIXED_RW, ioas, fd, 0, length, iova)


def main(edu_address, nvme_address):
    iommufd = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
    edu, nvme = Device(edu_address), Device(nvme_address)
    for d in (edu, nvme):
        call(d.fd, BIND, "<2IiIQ", 24, 0, iommufd, 0, 0)
    ioas = call(iommufd, IOAS_ALLOC, "<3I", 12, 0, 0)[2]
    for d in (edu, nvme):
        call(d.fd, ATTACH, "<4I", 16, 0, ioas, 0)
    edu.command(set_bits=2 | 4)
    nvme.command(set_bits=2)
    nvme.put(0, PMRCTL, struct.pack("<I", 1))

    memfd = os.memfd_create("ram")
    os.ftruncate(memfd, 0x100000)
    ram = mmap.mmap(memfd, 0x100000)
    pattern = bytes((i * 37 + 11) & 0xFF for i in range(BYTES))
    ram[:BYTES] = pattern
    map_file(iommufd, ioas, memfd, 0x100000, RAM_IOVA)

    size = nvme.region(PMR)[0]
    # With a bytearray, Python returns what ioctl(2) does: the descriptor.
    request = bytearray(struct.pack("<6I2Q", 40, 1 << 16 | 11, PMR, os.O_RDWR | os.O_CLOEXEC, 0, 1, 0, size))
    buffer = fcntl.ioctl(nvme.fd, FEATURE, request)
    map_file(iommufd, ioas, buffer, LENGTH, BAR_IOVA)
    dma(edu, BAR_IOVA)
    must(nvme.get(PMR, 0, BYTES) == pattern, "every byte landed in the peer's BAR")

    fcntl.ioctl(nvme.fd, RESET)
    nvme.put(0, PMRCTL, struct.pack("<I", 1))
    nvme.put(PMR, 0, bytes(BYTES))
    dma(edu, BAR_IOVA)
    must(nvme.get(PMR, 0, BYTES) == bytes(BYTES), "after a reset the same DMA goes nowhere")
    nvme.command(clear_bits=2)
    try:
        map_file(iommufd, ioas, buffer, LENGTH, BAR_IOVA + LENGTH)
        must(False, "with memory off the buffer cannot be mapped")
    except OSError as e:
        must(e.errno == errno.ENODEV, "with memory off the buffer cannot be mapped: ENODEV")
    nvme.command(set_bits=2)
    must(call(iommufd, IOAS_UNMAP, "<2I2Q", 24, ioas, BAR_IOVA, LENGTH)[3] == LENGTH, "the dead area is unmapped")
    map_file(iommufd, ioas, buffer, LENGTH, BAR_IOVA)
    dma(edu, BAR_IOVA)
    must(nvme.get(PMR, 0, BYTES) == pattern, "and mapped again, DMA works")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} EDU NVME (PCI addresses)")
    main(*sys.argv[1:])
