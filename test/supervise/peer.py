"""A process to look at from outside: it does what it is told, one Python line at a time."""
import ctypes
import fcntl
import json
import os
import signal
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_ssize_t
libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
libc.mremap.restype = ctypes.c_ssize_t
libc.mremap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t]
for f in (libc.munmap, libc.mprotect, libc.madvise):
    f.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int][: 2 if f is libc.munmap else 3]

PAGE = 4096
NONE, R, W, RW = 0, 1, 2, 3
SHARED, PRIVATE, FIXED, ANON = 1, 2, 16, 32


def checked(r):
    if r == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r


def mmap(length, prot=RW, flags=PRIVATE | ANON, fd=-1, offset=0, addr=0):
    return checked(libc.mmap(addr, length, prot, flags, fd, offset))


def munmap(addr, length):
    return checked(libc.munmap(addr, length))


def mprotect(addr, length, prot):
    return checked(libc.mprotect(addr, length, prot))


def madvise(addr, length, advice):
    return checked(libc.madvise(addr, length, advice))


def mremap(addr, old, new, flags=0, to=0):
    return checked(libc.mremap(addr, old, new, flags, to))


def peek(addr, n):
    return ctypes.string_at(addr, n).hex()


def poke(addr, data):
    ctypes.memmove(addr, bytes.fromhex(data), len(data) // 2)


def memfd(size=0, flags=2, name="peer"):
    fd = os.memfd_create(name, flags | 1)
    os.ftruncate(fd, size)
    return fd


def forked():
    """A child that stays as it is; killed with its parent."""
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, 9)
        while True:
            signal.pause()
    return pid


def answer(value):
    print(json.dumps(value), flush=True)


for line in sys.stdin:
    code = line.strip()
    try:
        try:
            value = eval(compile(code, "peer", "eval"))
        except SyntaxError:
            exec(compile(code, "peer", "exec"), globals())
            value = None
        answer({"value": value})
    except OSError as e:
        answer({"errno": e.errno})
    except Exception as e:
        answer({"error": repr(e)})
