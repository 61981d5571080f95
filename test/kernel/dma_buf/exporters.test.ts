import { describe, expect, it } from "vitest";
import { type DmaBuf, dmaBufGet, dmaBufPut } from "../../../src/kernel/dma_buf/dma_buf.ts";
import { systemHeapInit } from "../../../src/kernel/dma_buf/system_heap.ts";
import { udmabufInit } from "../../../src/kernel/dma_buf/udmabuf.ts";
import { EBADFD, EFAULT, EINVAL, EMFILE, ENOMEM, ENOTTY, type Errno } from "../../../src/lib/errno.ts";
import {
  DMA_BUF_IOCTL_SYNC,
  DMA_BUF_SYNC_END,
  DMA_BUF_SYNC_RW,
  DMA_HEAP_IOCTL_ALLOC,
  DmaBufSync,
  DmaHeapAllocationData,
  F_ADD_SEALS,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  MAP_PRIVATE,
  MAP_SHARED,
  MFD_ALLOW_SEALING,
  O_CLOEXEC,
  O_RDONLY,
  O_RDWR,
  PROT_READ,
  PROT_WRITE,
  UDMABUF_CREATE,
  UDMABUF_CREATE_LIST,
  UDMABUF_FLAGS_CLOEXEC,
  UdmabufCreate,
  UdmabufCreateItem,
  UdmabufCreateList,
} from "../../../src/uapi/index.ts";
import { Importer, ok, plainDevice, Rig } from "./support.ts";

class Machine extends Rig {
  readonly udmabuf: number;
  readonly heap: number;

  constructor() {
    super();
    udmabufInit(this.kernel);
    systemHeapInit(this.kernel);
    this.udmabuf = ok(this.run(this.process.sys.open("/dev/udmabuf", O_RDWR)));
    this.heap = ok(this.run(this.process.sys.open("/dev/dma_heap/system", O_RDWR)));
  }

  /** A memfd of `pages` pages, page n filled with n + 1. */
  memfd(pages: number, seals: number = F_SEAL_SHRINK): number {
    const { sys } = this.process;
    const fd = ok(this.run(sys.memfdCreate("m", MFD_ALLOW_SEALING)));
    ok(this.run(sys.ftruncate(fd, BigInt(pages) * 4096n)) ?? 0);
    for (let i = 0; i < pages; i++) {
      ok(this.run(sys.pwrite(fd, this.put(new Uint8Array(4096).fill(i + 1)), 4096, BigInt(i) * 4096n)));
    }
    if (seals !== 0) ok(this.run(sys.fcntl(fd, F_ADD_SEALS, seals)));
    return fd;
  }

  create(init: Parameters<typeof UdmabufCreate.alloc>[0]): number | Errno {
    return this.run(this.process.sys.ioctl(this.udmabuf, UDMABUF_CREATE, this.put(UdmabufCreate.alloc(init).bytes)));
  }

  createList(items: Parameters<typeof UdmabufCreateItem.alloc>[0][], flags = 0, count: number = items.length): number | Errno {
    const bytes = new Uint8Array(UdmabufCreateList.size + items.length * UdmabufCreateItem.size);
    bytes.set(UdmabufCreateList.alloc({ flags, count }).bytes);
    for (const [i, item] of items.entries())
      bytes.set(UdmabufCreateItem.alloc(item).bytes, UdmabufCreateList.size + i * UdmabufCreateItem.size);
    return this.run(this.process.sys.ioctl(this.udmabuf, UDMABUF_CREATE_LIST, this.put(bytes)));
  }

  /** DMA_HEAP_IOCTL_ALLOC: the new descriptor. */
  allocate(init: Parameters<typeof DmaHeapAllocationData.alloc>[0]): number | Errno {
    const arg = this.put(DmaHeapAllocationData.alloc(init).bytes);
    const r = this.run(this.process.sys.ioctl(this.heap, DMA_HEAP_IOCTL_ALLOC, arg));
    return r === 0 ? DmaHeapAllocationData.over(this.peek(arg, DmaHeapAllocationData.size)).fd : r;
  }

  buffer(fd: number): DmaBuf {
    const buf = ok(this.call(() => dmaBufGet(this.process, fd)));
    this.call(() => dmaBufPut(buf));
    return buf;
  }

  /** What a device reads that has mapped the whole buffer. */
  dmaRead(fd: number): { bytes: Uint8Array; entries: number } {
    const buf = this.buffer(fd);
    const i = new Importer(plainDevice());
    ok(this.run(i.attach(buf)));
    const { entries } = ok(this.run(i.map()));
    const bytes = new Uint8Array(Number(buf.size));
    let at = 0;
    for (const e of entries) {
      this.kernel.phys.read(e.address as never, bytes.subarray(at, at + Number(e.length)));
      at += Number(e.length);
    }
    this.run(i.unmap());
    this.run(i.detach());
    return { bytes, entries: entries.length };
  }

  map(fd: number, length: number, flags: number, offset = 0n): bigint | Errno {
    return this.run(this.process.sys.mmap(0n, BigInt(length), PROT_READ | PROT_WRITE, flags, fd, offset));
  }

  sync(fd: number, flags: bigint): number | Errno {
    return this.run(this.process.sys.ioctl(fd, DMA_BUF_IOCTL_SYNC, this.put(DmaBufSync.alloc({ flags }).bytes)));
  }

  close(fd: number): void {
    this.run(this.process.sys.close(fd));
  }
}

describe("/dev/udmabuf", () => {
  it("gives devices the very pages of the memfd, and pins them until the release", () => {
    const m = new Machine();
    const memfd = m.memfd(3);
    const fd = ok(m.create({ memfd, offset: 4096n, size: 8192n }));
    expect(m.kernel.frames.pinned).toBe(2);
    const { bytes } = m.dmaRead(fd);
    expect([bytes.length, bytes[0], bytes[4096]]).toEqual([8192, 2, 3]);
    m.run(m.process.sys.pwrite(memfd, m.put(Uint8Array.of(77)), 1, 4096n));
    expect(m.dmaRead(fd).bytes[0]).toBe(77);
    m.close(fd);
    expect(m.kernel.frames.pinned).toBe(0);
    expect(m.leaks()).toEqual({});
  });

  it("joins pieces of several memfds in the order of the list", () => {
    const m = new Machine();
    const [a, b] = [m.memfd(2), m.memfd(4)];
    const fd = ok(
      m.createList(
        [
          { memfd: b, offset: 12288n, size: 4096n },
          { memfd: a, offset: 0n, size: 8192n },
        ],
        UDMABUF_FLAGS_CLOEXEC,
      ),
    );
    expect(m.process.files.cloexec(fd)).toBe(true);
    const { bytes } = m.dmaRead(fd);
    expect([bytes[0], bytes[4096], bytes[8192]]).toEqual([4, 1, 2]);
  });

  it.each([
    ["an unaligned offset", { offset: 1n, size: 4096n }, EINVAL],
    ["an unaligned size", { offset: 0n, size: 4095n }, EINVAL],
    ["no size", { offset: 0n, size: 0n }, EINVAL],
    ["more than there is", { offset: 0n, size: 0x4000n }, EINVAL],
    ["a start beyond the end", { offset: 0x3000n, size: 0x1000n }, EINVAL],
    ["a size past the limit", { offset: 0n, size: 1n << 62n }, EINVAL],
    ["a size that needs too long a list", { offset: 0n, size: 1n << 42n }, ENOMEM],
  ])("refuses %s", (_name, init, errno) => {
    const m = new Machine();
    expect(m.create({ memfd: m.memfd(3), ...init })).toBe(errno);
    expect(m.kernel.frames.pinned).toBe(0);
  });

  it("wants the memfd sealed against shrinking and not against writing; another file is EBADFD", () => {
    const m = new Machine();
    const size = 4096n;
    expect(m.create({ memfd: m.memfd(1, 0), size })).toBe(EINVAL);
    expect(m.create({ memfd: m.memfd(1, F_SEAL_GROW), size })).toBe(EINVAL);
    expect(m.create({ memfd: m.memfd(1, F_SEAL_SHRINK | F_SEAL_WRITE), size })).toBe(EINVAL);
    expect(m.create({ memfd: m.memfd(1, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE), size })).toBe(EINVAL);
    ok(m.create({ memfd: m.memfd(1, F_SEAL_SHRINK | F_SEAL_GROW), size }));
    expect(m.create({ memfd: m.udmabuf, size })).toBe(EBADFD);
    expect(m.create({ memfd: 99, size })).toBe(EBADFD);
    expect(m.create({ memfd: 0xffff_ffff, size })).toBe(EBADFD);
  });

  it("undoes the pins of the pieces before the one at fault", () => {
    const m = new Machine();
    const [good, bad] = [m.memfd(1), m.memfd(1, 0)];
    expect(
      m.createList([
        { memfd: good, size: 4096n },
        { memfd: bad, size: 4096n },
      ]),
    ).toBe(EINVAL);
    expect(
      m.createList([
        { memfd: good, size: 4096n },
        { memfd: good, size: 0n },
      ]),
    ).toBe(EINVAL);
    expect(m.kernel.frames.pinned).toBe(0);
  });

  it("takes lists of up to 1024 pieces, and at least one", () => {
    const m = new Machine();
    const memfd = m.memfd(1);
    expect(m.createList([])).toBe(EINVAL);
    expect(m.createList(Array.from({ length: 1024 }, () => ({ memfd, size: 4096n })))).not.toBe(EINVAL);
    expect(m.createList([{ memfd, size: 4096n }], 0, 1025)).toBe(EINVAL);
  });

  it("answers EFAULT to what it cannot read, ENOTTY to what it does not know, EMFILE without leaking", () => {
    const m = new Machine();
    const { sys } = m.process;
    expect(m.run(sys.ioctl(m.udmabuf, UDMABUF_CREATE, 8n))).toBe(EFAULT);
    expect(m.run(sys.ioctl(m.udmabuf, UDMABUF_CREATE_LIST, 8n))).toBe(EFAULT);
    const head = m.user(4096) + 4096n - BigInt(UdmabufCreateList.size);
    m.process.mm.memory.write(head, UdmabufCreateList.alloc({ count: 500 }).bytes);
    expect(m.run(sys.ioctl(m.udmabuf, UDMABUF_CREATE_LIST, head))).toBe(EFAULT);
    expect(m.run(sys.ioctl(m.udmabuf, 0x7543, 0n))).toBe(ENOTTY);
    const memfd = m.memfd(1);
    m.process.rlimits.nofile = m.process.files.size;
    expect(m.create({ memfd, size: 4096n })).toBe(EMFILE);
    expect(m.kernel.frames.pinned).toBe(0);
    expect(m.leaks()).toEqual({});
  });

  it("can be mapped, shared only, and shows the CPU what devices see", () => {
    const m = new Machine();
    const memfd = m.memfd(2);
    const fd = ok(m.create({ memfd, size: 8192n }));
    expect(m.map(fd, 4096, MAP_PRIVATE)).toBe(EINVAL);
    expect(m.map(fd, 12288, MAP_SHARED)).toBe(EINVAL);
    expect(m.map(fd, 8192, MAP_SHARED, 4096n)).toBe(EINVAL);
    const addr = ok(m.map(fd, 4096, MAP_SHARED, 4096n));
    expect(m.peek(addr, 1)[0]).toBe(2);
    m.process.mm.memory.write(addr, Uint8Array.of(9));
    expect(m.dmaRead(fd).bytes[4096]).toBe(9);
  });

  it("refuses the end of a CPU access that never began", () => {
    const m = new Machine();
    const fd = ok(m.create({ memfd: m.memfd(1), size: 4096n }));
    expect(m.sync(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END)).toBe(EINVAL);
    expect(m.sync(fd, DMA_BUF_SYNC_RW)).toBe(0);
    expect(m.sync(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END)).toBe(0);
    // Once begun, always begun.
    expect(m.sync(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END)).toBe(0);
    m.close(fd);
    expect(m.leaks()).toEqual({});
  });
});

describe("/dev/dma_heap/system", () => {
  it("allocates zeroed memory, rounded up to pages, in blocks as large as fit", () => {
    const m = new Machine();
    const before = m.kernel.frames.live;
    const fd = ok(m.allocate({ len: 0x11_1001n, fd_flags: O_RDWR | O_CLOEXEC }));
    expect(m.process.files.cloexec(fd)).toBe(true);
    expect(m.buffer(fd).size).toBe(0x11_2000n);
    const { bytes, entries } = m.dmaRead(fd);
    // 1 MiB, 64 KiB and two pages.
    expect([bytes.every((b) => b === 0), entries]).toEqual([true, 4]);
    m.close(fd);
    // Only the pages that held the arguments are left.
    expect(m.kernel.frames.live - before).toBeLessThan(4);
    expect(m.leaks()).toEqual({});
  });

  it.each([
    ["no length", { len: 0n }, EINVAL],
    ["a length that wraps when rounded", { len: 0xffff_ffff_ffff_ffffn }, EINVAL],
    ["a descriptor that is not 0", { len: 4096n, fd: 1 }, EINVAL],
    ["flags of the descriptor beyond mode and O_CLOEXEC", { len: 4096n, fd_flags: 0x800 }, EINVAL],
    ["flags of the heap", { len: 4096n, heap_flags: 1n }, EINVAL],
    ["more than there is", { len: 1n << 40n }, ENOMEM],
  ])("refuses %s", (_name, init, errno) => {
    const m = new Machine();
    const { pinned } = m.kernel.frames;
    expect(m.allocate(init)).toBe(errno);
    expect(m.kernel.frames.pinned).toBe(pinned);
    expect(m.leaks()).toEqual({});
  });

  it("answers EINVAL to another number, and to a number it knows whatever its type", () => {
    const m = new Machine();
    const { sys } = m.process;
    expect(m.run(sys.ioctl(m.heap, 0x4801, 0n))).toBe(EINVAL);
    expect(m.run(sys.ioctl(m.heap, DMA_HEAP_IOCTL_ALLOC, 8n))).toBe(EFAULT);
    // No direction in the command: nothing is read, so the length is 0.
    expect(m.run(sys.ioctl(m.heap, 0x4800, 0n))).toBe(EINVAL);
  });

  it("loses nothing when the answer cannot be written or no descriptor is left", () => {
    const m = new Machine();
    const arg = m.put(DmaHeapAllocationData.alloc({ len: 4096n }).bytes);
    m.run(m.process.sys.mprotect(arg, 4096n, PROT_READ));
    const { size } = m.process.files;
    expect(m.run(m.process.sys.ioctl(m.heap, DMA_HEAP_IOCTL_ALLOC, arg))).toBe(EFAULT);
    expect(m.process.files.size).toBe(size);
    expect(m.leaks()).toEqual({});
    m.process.rlimits.nofile = size;
    expect(m.allocate({ len: 4096n })).toBe(EMFILE);
    expect(m.leaks()).toEqual({});
  });

  it("can be mapped: shared anywhere, private within one block", () => {
    const m = new Machine();
    const fd = ok(m.allocate({ len: 0x2000n, fd_flags: O_RDWR }));
    const addr = ok(m.map(fd, 8192, MAP_SHARED));
    m.process.mm.memory.write(addr + 4096n, Uint8Array.of(5));
    expect(m.dmaRead(fd).bytes[4096]).toBe(5);
    expect(m.map(fd, 12288, MAP_SHARED)).toBe(EINVAL);
    expect(m.map(fd, 8192, MAP_PRIVATE)).toBe(EINVAL);
    ok(m.map(fd, 4096, MAP_PRIVATE));
    expect(m.sync(fd, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END)).toBe(0);
  });

  it("opened for reading makes buffers all the same", () => {
    const m = new Machine();
    const { sys } = m.process;
    const heap = ok(m.run(sys.open("/dev/dma_heap/system", O_RDONLY)));
    expect(m.run(sys.ioctl(heap, DMA_HEAP_IOCTL_ALLOC, m.put(DmaHeapAllocationData.alloc({ len: 4096n }).bytes)))).toBe(0);
  });
});
