import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  closeFd,
  kill,
  makePipe,
  readCString,
  readFd,
  readMaps,
  readMemory,
  readPath,
  waitPid,
  writeMemory,
} from "../../src/host/index.ts";
import { Errno } from "../../src/lib/errno.ts";
import { failure, leavesNothing, ok, python, start } from "./support.ts";

leavesNothing();

const PAGE = 4096n;
/** Four pages: read-write, read-write, read-only, none; the first two hold 0, 1, 2 … by the byte, with 3 for 0. */
const TARGET = `
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
a = libc.mmap(None, 5 * 4096, 3, 0x22, -1, 0)
ctypes.memmove(a, bytes((i % 256) or 3 for i in range(8192)), 8192)
ctypes.memmove(a + 100, b"/dev/vfio/\\xc3\\xa9\\0", 13)
libc.mprotect(a + 2 * 4096, 4096, 1)
libc.mprotect(a + 3 * 4096, 8192, 0)
sys.stdout.write(f"{a}\\n")
sys.stdout.flush()
time.sleep(100)
`;

describe("another process's memory", () => {
  let pid = 0;
  let base = 0n;
  const expected = (offset: number): number => offset % 256 || 3;

  beforeEach(() => {
    const [out, into] = ok(makePipe());
    pid = start(python(TARGET, into)).pid;
    closeFd(into);
    const line = new Uint8Array(64);
    base = BigInt(Buffer.from(line.subarray(0, ok(readFd(out, line)))).toString());
    closeFd(out);
  });
  afterEach(() => {
    kill(pid, 9);
    waitPid(pid, { block: true });
  });

  it("is read and written, a few bytes or many, at any address", () => {
    for (const [offset, length] of [
      [1000, 1],
      [1001, 64],
      [1002, 65],
      [4095, 2],
      [200, 7000],
    ] as const) {
      const bytes = new Uint8Array(length);
      expect(readMemory(pid, base + BigInt(offset), bytes)).toBe(length);
      expect([...bytes]).toEqual(Array.from({ length }, (_, i) => expected(offset + i)));
      const changed = bytes.map((b) => b ^ 0xff);
      expect(writeMemory(pid, base + BigInt(offset), changed)).toBe(length);
      const again = new Uint8Array(length);
      expect(readMemory(pid, base + BigInt(offset), again)).toBe(length);
      expect(again).toEqual(changed);
      writeMemory(pid, base + BigInt(offset), bytes);
    }
  });

  it("ends a copy at the first byte that the process itself could not touch", () => {
    for (const length of [3 * 4096 + 50, 5000, 100]) {
      const bytes = new Uint8Array(length).fill(0xee);
      const from = base + 3n * PAGE - BigInt(length) / 2n;
      const half = length / 2;
      expect(readMemory(pid, from, bytes)).toBe(half);
      expect(bytes.subarray(half).every((b) => b === 0xee)).toBe(true);
    }
    const src = new Uint8Array(200).fill(9);
    expect(writeMemory(pid, base + 2n * PAGE - 120n, src)).toBe(120);
    expect(failure(writeMemory(pid, base + 2n * PAGE, src))).toBe("EFAULT");
    expect(failure(readMemory(pid, base + 3n * PAGE, src))).toBe("EFAULT");
  });

  it("fails with EFAULT at hostile addresses, and never wraps around", () => {
    const bytes = new Uint8Array(32);
    for (const address of [0n, 1n, 0xffff_8000_0000_0000n, (1n << 64n) - 1n, (1n << 64n) - 16n, 0x8000_0000_0000_0000n, (1n << 47n) - 8n]) {
      expect(failure(readMemory(pid, address, bytes))).toBe("EFAULT");
      expect(failure(writeMemory(pid, address, bytes))).toBe("EFAULT");
      expect(failure(readCString(pid, address))).toBe("EFAULT");
    }
    expect(readMemory(pid, 0n, new Uint8Array(0))).toBe(0);
  });

  it("gives strings up to their NUL, across pages, and says when there is none", () => {
    expect(readPath(pid, base + 100n)).toBe("/dev/vfio/é");
    expect(ok(readCString(pid, base + 100n)).length).toBe(12);
    expect(failure(readCString(pid, base + 200n))).toBe("ENAMETOOLONG");
    expect(failure(readCString(pid, base + 200n, 8))).toBe("ENAMETOOLONG");
    const straddling = Buffer.from(`${"x".repeat(600)}\0`);
    writeMemory(pid, base + PAGE - 300n, straddling);
    expect(readPath(pid, base + PAGE - 300n)).toBe("x".repeat(600));
    expect(ok(readCString(pid, base + 2n * PAGE)).length).toBe(0);
    const noNul = new Uint8Array(100).fill(65);
    const end = readMaps(pid)?.find((m) => m.start <= base && base < m.end)?.end ?? 0n;
    expect(end).toBe(base + 2n * PAGE);
    writeMemory(pid, end - 100n, noNul);
    // What follows is zeros, readable: the string ends there.
    expect(ok(readCString(pid, end - 100n)).length).toBe(100);
    expect(failure(readCString(pid, base + 3n * PAGE))).toBe("EFAULT");
    // A string may end exactly where memory does.
    expect(ok(readCString(pid, base + 3n * PAGE - 1n)).length).toBe(0);
  });

  it("is not there when the process is not", () => {
    kill(pid, 9);
    waitPid(pid, { block: true });
    const bytes = new Uint8Array(4);
    expect(readMemory(pid, base, bytes)).toBeInstanceOf(Errno);
    expect(failure(readMemory(pid, base, bytes))).toBe("ESRCH");
    expect(failure(writeMemory(pid, base, bytes))).toBe("ESRCH");
    expect(failure(readCString(pid, base))).toBe("ESRCH");
  });
});
