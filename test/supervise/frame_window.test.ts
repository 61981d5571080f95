import { afterEach, beforeEach, expect, it } from "vitest";
import { closeFd, ftruncateFd, memfdCreate, preadFd, pwriteFd } from "../../src/host/index.ts";
import { systemHeapInit } from "../../src/kernel/dma_buf/system_heap.ts";
import type { File } from "../../src/kernel/fs/file.ts";
import type { Process } from "../../src/kernel/fs/process.ts";
import { Kernel } from "../../src/kernel/kernel.ts";
import { AddressSpace } from "../../src/kernel/mm/address_space.ts";
import { Vma } from "../../src/kernel/mm/vma.ts";
import { type Pfn, type PhysAddr, pfnOf } from "../../src/lib/addr.ts";
import { ENODEV, Errno } from "../../src/lib/errno.ts";
import { showFrames, type WindowHost } from "../../src/supervise/frame_window.ts";
import { DMA_HEAP_IOCTL_ALLOC, DmaHeapAllocationData, O_RDWR } from "../../src/uapi/index.ts";
import { expectNothingLeaks, memory, poke, run } from "../harness.ts";

const LENGTH = 0x3000;
let kernel: Kernel;
let p: Process;
let file: File;
let vma: Vma;
let pfns: Pfn[];
let memfd: number;
let host: WindowHost;
let lastClose: (() => void)[];
let warnings: string[];

beforeEach(() => {
  kernel = new Kernel();
  systemHeapInit(kernel);
  p = kernel.fs.createProcess();
  const heap = run(p, p.sys.open("/dev/dma_heap/system", O_RDWR));
  const arg = memory(p, 4096);
  poke(p, arg, DmaHeapAllocationData.alloc({ len: BigInt(LENGTH), fd_flags: O_RDWR }).bytes);
  run(p, p.sys.ioctl(heap, DMA_HEAP_IOCTL_ALLOC, arg));
  const out = new Uint8Array(DmaHeapAllocationData.size);
  p.mm.memory.read(arg, out);
  file = p.files.get(DmaHeapAllocationData.over(out).fd) as File;
  vma = new Vma(new AddressSpace(kernel), 0n, BigInt(LENGTH), 3, true, file, 0n);
  expect(file.ops.mmap?.(file, vma)).toBeUndefined();
  pfns = [0, 1, 2].map((i) => pfnOf(vma.ops?.fault(vma, i) as PhysAddr));
  const fd = memfdCreate("window");
  if (fd instanceof Errno) throw new Error(fd.name);
  memfd = fd;
  ftruncateFd(memfd, LENGTH);
  lastClose = [];
  warnings = [];
  host = {
    kernel,
    files: { memfd: () => memfd, onLastClose: (_f, callback) => lastClose.push(callback) },
    warn: (message) => warnings.push(message),
  };
});

afterEach(() => {
  closeFd(memfd);
  expectNothingLeaks(kernel);
});

const at = (offset: number): number => {
  const b = new Uint8Array(1);
  preadFd(memfd, b, offset);
  return b[0] as number;
};
const dma = (page: number, offset: number): number => {
  const b = new Uint8Array(1);
  expect(kernel.frames.readFrame(pfns[page] as Pfn, offset, b)).toBe(true);
  return b[0] as number;
};

it("what a device wrote before is there when the program maps the buffer, and both see each other's writes after", () => {
  kernel.frames.writeFrame(pfns[1] as Pfn, 7, Uint8Array.of(42));
  expect(showFrames(host, file, vma)).toBeUndefined();
  expect(at(4096 + 7)).toBe(42);
  kernel.frames.writeFrame(pfns[2] as Pfn, 0, Uint8Array.of(43));
  expect(at(8192)).toBe(43);
  pwriteFd(memfd, Uint8Array.of(44), 5);
  expect(dma(0, 5)).toBe(44);
  // A second mapping is of the same window.
  expect(showFrames(host, file, vma)).toBeUndefined();
  expect(lastClose.length).toBe(1);
  lastClose[0]?.();
});

it("the bytes outlive the program's last descriptor, and come back when it has one again", () => {
  showFrames(host, file, vma);
  pwriteFd(memfd, Uint8Array.of(9), 8192);
  lastClose[0]?.();
  expect(dma(2, 0)).toBe(9);
  expect(kernel.frames.isBacked(pfns[2] as Pfn)).toBe(false);
  pwriteFd(memfd, Uint8Array.of(1), 8192);
  expect(dma(2, 0)).toBe(9);
  expect(showFrames(host, file, vma)).toBeUndefined();
  expect(at(8192)).toBe(9);
  lastClose[1]?.();
});

it("pages that live elsewhere are refused aloud", () => {
  kernel.frames.adopt(pfns[1] as Pfn, { read: () => false, write: () => false });
  expect(showFrames(host, file, vma)).toBe(ENODEV);
  expect(warnings).toHaveLength(1);
  kernel.frames.adopt(pfns[1] as Pfn, undefined);
});
