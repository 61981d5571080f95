import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Kernel } from "../../src/kernel/kernel.ts";
import { PAGE_SIZE, type Pfn } from "../../src/lib/addr.ts";
import { EFAULT, ENOMEM, Errno } from "../../src/lib/errno.ts";
import { ProcessMemory } from "../../src/supervise/process_memory.ts";
import { RealMemory } from "../../src/supervise/real_file.ts";
import type { TraceEvent } from "../../src/trace/index.ts";
import { failFrames, leaks } from "../harness.ts";
import { ownDescriptors, Peer } from "./peer.ts";

const PAGE = 4096n;
let peer: Peer;
let kernel: Kernel;
let shared: RealMemory;
let memory: ProcessMemory;
let events: TraceEvent[];
let before: string[];
const others: Peer[] = [];

beforeEach(async () => {
  before = ownDescriptors();
  kernel = new Kernel();
  events = [];
  kernel.trace.listen(({ event }) => {
    if (event.type === "mm.lost" || event.type === "mm.kept") events.push(event);
  });
  shared = new RealMemory(kernel);
  peer = await Peer.start();
  memory = new ProcessMemory(shared, peer.target);
});

afterEach(async () => {
  await peer.end();
  for (const p of others.splice(0)) await p.end();
  memory.destroy();
  expect(leaks(kernel)).toEqual({});
  expect(shared.files.size).toBe(0);
  expect(shared.budget.apart).toBe(0);
  expect(ownDescriptors()).toEqual(before);
});

async function another(): Promise<{ peer: Peer; memory: ProcessMemory }> {
  const p = await Peer.start();
  others.push(p);
  return { peer: p, memory: new ProcessMemory(shared, p.target) };
}

const addr = async (code: string, p = peer): Promise<bigint> => BigInt(await p.ask(code));
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const text = (b: Uint8Array): string => new TextDecoder().decode(b);
const cpuRead = async (at: bigint, n: number, p = peer): Promise<string> =>
  Buffer.from(await p.ask<string>(`peek(${at}, ${n})`), "hex").toString();
const cpuWrite = (at: bigint, s: string, p = peer): Promise<unknown> => p.ask(`poke(${at}, "${Buffer.from(s).toString("hex")}")`);

function pinned(r: Pfn[] | Errno): Pfn[] {
  if (r instanceof Errno) throw new Error(`the pin failed with ${r.name}`);
  return r;
}

function dmaRead(pfn: Pfn | undefined, n: number, offset = 0): string | undefined {
  const dst = new Uint8Array(n);
  return kernel.frames.readFrame(pfn as Pfn, offset, dst) ? text(dst) : undefined;
}

const dmaWrite = (pfn: Pfn | undefined, s: string, offset = 0): boolean => kernel.frames.writeFrame(pfn as Pfn, offset, bytes(s));

describe.each([
  ["for the caller", true],
  ["for another process than the caller's", false],
])("copies %s", (_who, own) => {
  beforeEach(() => {
    if (!own) shared.caller = () => undefined;
  });

  it("read and write the process's memory", async () => {
    const a = await addr("mmap(4 * PAGE)");
    await cpuWrite(a + 4090n, "across pages");
    const dst = new Uint8Array(12);
    expect(memory.read(a + 4090n, dst)).toBe(0);
    expect(text(dst)).toBe("across pages");
    expect(memory.write(a + 8190n, bytes("and back"))).toBe(0);
    expect(await cpuRead(a + 8190n, 8)).toBe("and back");
    const large = new Uint8Array(3 * PAGE_SIZE).fill(7);
    expect(memory.write(a, large)).toBe(0);
    expect(memory.read(a, new Uint8Array(large.length))).toBe(0);
    expect(memory.read(a, new Uint8Array(0))).toBe(0);
  });

  it("stop at the exact byte that cannot be accessed, and leave the rest alone", async () => {
    const a = await addr("mmap(3 * PAGE)");
    await peer.ask(`munmap(${a + PAGE}, PAGE)`);
    const dst = new Uint8Array(100).fill(0xee);
    expect(memory.read(a + PAGE - 37n, dst)).toBe(63);
    expect([dst[36], dst[37]]).toEqual([0, 0xee]);
    expect(memory.write(a + PAGE - 1n, bytes("xyz"))).toBe(2);
    expect(memory.read(a + PAGE, dst)).toBe(100);
    expect(memory.write(a + PAGE + 5n, bytes("x"))).toBe(1);
  });

  it("honour protections, as the process itself would meet them", async () => {
    const a = await addr("mmap(3 * PAGE)");
    await peer.ask(`mprotect(${a + PAGE}, PAGE, R)`);
    await peer.ask(`mprotect(${a + 2n * PAGE}, PAGE, NONE)`);
    expect(memory.write(a + PAGE - 2n, bytes("abcd"))).toBe(2);
    expect(memory.read(a + 2n * PAGE - 2n, new Uint8Array(4))).toBe(2);
  });

  it("fault at addresses that no program has", () => {
    for (const a of [0n, 8n, 0x8000_0000_0000_0000n, 0xffff_ffff_ff60_0000n, 0xffff_ffff_ffff_fff0n, 0xffff_8880_0000_0000n]) {
      expect(memory.read(a, new Uint8Array(16))).toBe(16);
      expect(memory.write(a, new Uint8Array(16))).toBe(16);
    }
  });

  it("reach nobody once the process is gone", async () => {
    const a = await addr("mmap(PAGE)");
    await peer.end();
    expect(memory.read(a, new Uint8Array(4))).toBe(4);
    peer.target.alive = false;
    expect(memory.write(a, bytes("x"))).toBe(1);
    expect(memory.pin(a, 1, true)).toBe(EFAULT);
  });
});

describe("a pin of private memory", () => {
  it("lets devices read and write what the program reads and writes", async () => {
    const a = await addr("mmap(3 * PAGE)");
    const pfns = pinned(memory.pin(a, 3, true));
    await cpuWrite(a + PAGE + 8n, "from the program");
    expect(dmaRead(pfns[1], 16, 8)).toBe("from the program");
    expect(dmaWrite(pfns[2], "from the device", 100)).toBe(true);
    expect(await cpuRead(a + 2n * PAGE + 100n, 15)).toBe("from the device");
    expect(dmaRead(pfns[0], 3)).toBe("\0\0\0");
    memory.unpin(pfns, true);
  });

  it("gives a page one frame however often it is pinned, and adjacent pages adjacent frames", async () => {
    const a = await addr("mmap(8 * PAGE)");
    const all = pinned(memory.pin(a, 8, true));
    expect(all.map((p) => p - (all[0] as Pfn))).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    const some = pinned(memory.pin(a + 2n * PAGE, 3, false));
    expect(some).toEqual(all.slice(2, 5));
    expect(kernel.frames.pinned).toBe(11);
    memory.unpin(all, true);
    expect(memory.privatePins).toBe(3);
    const again = pinned(memory.pin(a + PAGE, 3, true));
    expect(again.slice(1)).toEqual(some.slice(0, 2));
    memory.unpin(some, false);
    expect(memory.privatePins).toBe(3);
    memory.unpin(again, true);
    expect(memory.privatePins).toBe(0);
  });

  it("is not stopped by a later mprotect, as DMA is not", async () => {
    const a = await addr("mmap(PAGE)");
    const pfns = pinned(memory.pin(a, 1, true));
    await peer.ask(`mprotect(${a}, PAGE, NONE)`);
    expect(dmaWrite(pfns[0], "still")).toBe(true);
    expect(dmaRead(pfns[0], 5)).toBe("still");
    await peer.ask(`mprotect(${a}, PAGE, R)`);
    expect(await cpuRead(a, 5)).toBe("still");
    memory.unpin(pfns, true);
  });

  it("stays with the parent after a fork", async () => {
    const a = await addr("mmap(2 * PAGE)");
    await cpuWrite(a, "before");
    const pfns = pinned(memory.pin(a, 1, true));
    const child = await peer.ask("globals().update(child=forked()) or child");
    const childMemory = new ProcessMemory(shared, { pid: child, tid: child, alive: true });
    const childPfns = pinned(childMemory.pin(a, 1, true));
    expect(childPfns).not.toEqual(pfns);
    expect(dmaWrite(pfns[0], "parent")).toBe(true);
    expect(dmaWrite(childPfns[0], "child!")).toBe(true);
    expect(await cpuRead(a, 6)).toBe("parent");
    expect(dmaRead(childPfns[0], 6)).toBe("child!");
    childMemory.unpin(childPfns, true);
    childMemory.destroy();
    memory.unpin(pfns, true);
    await peer.ask("os.kill(child, 9)");
    await peer.ask("os.waitpid(child, 0)[1]");
  });

  it("loses its bytes with the process, and says so once a page", async () => {
    const a = await addr("mmap(2 * PAGE)");
    const pfns = pinned(memory.pin(a, 2, true));
    await peer.end();
    peer.target.alive = false;
    expect(dmaRead(pfns[0], 4)).toBeUndefined();
    expect(dmaRead(pfns[0], 4)).toBeUndefined();
    expect(dmaWrite(pfns[1], "x")).toBe(false);
    const page = Number(a >> 12n);
    const origin = `process ${peer.pid}`;
    expect(events).toEqual([
      { type: "mm.lost", origin, page, pfn: pfns[0], pinned: 2, write: false, why: "exited" },
      { type: "mm.lost", origin, page: page + 1, pfn: pfns[1], pinned: 2, write: true, why: "exited" },
    ]);
    memory.destroy();
    expect(dmaRead(pfns[0], 4)).toBeUndefined();
    expect(shared.budget.lost).toBe(2);
    memory.unpin(pfns, true);
  });

  it("never reaches the memory of the program that the process executes instead", async () => {
    const a = await addr("mmap(PAGE)");
    const pfns = pinned(memory.pin(a, 1, true));
    const script = `import ctypes,time;l=ctypes.CDLL(None);l.mmap.restype=ctypes.c_size_t;l.mmap.argtypes=[ctypes.c_size_t]*6;a=l.mmap(${a},4096,3,50,2**64-1,0);ctypes.memmove(a,b"other",5);print("[1]",flush=True);time.sleep(60)`;
    peer.tell(`os.execv(sys.executable, [sys.executable, "-c", ${JSON.stringify(script)}])`);
    await expect.poll(() => dmaRead(pfns[0], 5), { timeout: 5000 }).toBeUndefined();
    const now = new ProcessMemory(shared, peer.target);
    await expect
      .poll(
        () => {
          const dst = new Uint8Array(5);
          return now.read(a, dst) === 0 ? text(dst) : "";
        },
        { timeout: 5000 },
      )
      .toBe("other");
    expect(dmaWrite(pfns[0], "wrong")).toBe(false);
    const dst = new Uint8Array(5);
    expect(now.read(a, dst)).toBe(0);
    expect(text(dst)).toBe("other");
    expect(events).toMatchObject([{ type: "mm.lost", why: "exited" }]);
    memory.unpin(pfns, true);
  });
});

describe("what may not be pinned", () => {
  it.each([
    ["a hole", "munmap(a + PAGE, PAGE)", "mm", true, false],
    ["PROT_NONE", "mprotect(a + PAGE, PAGE, NONE)", "mm", false, false],
    ["memory to write that may only be read", "mprotect(a + PAGE, PAGE, R)", "mm", true, false],
    ["memory to read that may only be written", "mprotect(a + PAGE, PAGE, W)", "mm", false, false],
    ["memory to read that may only be read: that works", "mprotect(a + PAGE, PAGE, R)", "mm", false, true],
    ["memory to write that may only be written: that works", "mprotect(a + PAGE, PAGE, W)", "mm", true, true],
  ])("%s", async (_what, change, _kind, write, works) => {
    const a = await addr("globals().update(a=mmap(3 * PAGE)) or a");
    await peer.ask(change);
    const r = memory.pin(a, 3, write);
    if (works) memory.unpin(pinned(r), true);
    else expect(r).toBe(EFAULT);
    expect(kernel.frames.pinned).toBe(0);
    memory.unpin(pinned(memory.pin(a, 1, true)), true);
  });

  it("what lies past the end of a file, shared or private", async () => {
    for (const flags of ["SHARED", "PRIVATE"]) {
      const a = await addr(`mmap(3 * PAGE, RW, ${flags}, memfd(PAGE + 1))`);
      expect(memory.pin(a, 3, true)).toBe(EFAULT);
      expect(memory.pin(a + 2n * PAGE, 1, false)).toBe(EFAULT);
      memory.unpin(pinned(memory.pin(a, 2, true)), true);
    }
  });

  it("a shared mapping of a file on disk, for writing; for reading it can be, and a private one too", async () => {
    await peer.ask("import tempfile");
    const a = await addr(
      "globals().update(t=tempfile.TemporaryFile(dir='/var/tmp')) or t.truncate(8192) and mmap(8192, RW, SHARED, t.fileno())",
    );
    await cpuWrite(a + PAGE, "on disk");
    expect(memory.pin(a, 2, true)).toBe(EFAULT);
    const pfns = pinned(memory.pin(a, 2, false));
    expect(dmaRead(pfns[1], 7)).toBe("on disk");
    memory.unpin(pfns, false);
    const b = await addr("mmap(8192, RW, PRIVATE, t.fileno())");
    const own = pinned(memory.pin(b + PAGE, 1, true));
    expect(dmaWrite(own[0], "private")).toBe(true);
    expect(await cpuRead(a + PAGE, 7)).toBe("on disk");
    expect(await cpuRead(b + PAGE, 7)).toBe("private");
    memory.unpin(own, true);
  });

  it("a mapping of a device of ours, and the kernel's own pages", async () => {
    const a = await addr("mmap(PAGE, RW, SHARED, memfd(PAGE, name='barlink:7'))");
    expect(memory.pin(a, 1, false)).toBe(EFAULT);
    const vvar = await peer.ask<string[]>("[l.split('-')[0] for l in open('/proc/self/maps') if '[vvar' in l]");
    for (const v of vvar) expect(memory.pin(BigInt(`0x${v}`), 1, false)).toBe(EFAULT);
    const [vdso] = await peer.ask<string[]>("[l.split('-')[0] for l in open('/proc/self/maps') if '[vdso' in l]");
    if (vdso !== undefined) {
      memory.unpin(pinned(memory.pin(BigInt(`0x${vdso}`), 1, false)), false);
      expect(memory.pin(BigInt(`0x${vdso}`), 1, true)).toBe(EFAULT);
    }
  });

  it("more than there are frames: ENOMEM, and nothing stays pinned", async () => {
    const a = await addr("mmap(4 * PAGE, RW, SHARED, memfd(4 * PAGE))");
    const b = await addr(`mmap(4 * PAGE, RW, PRIVATE | ANON | FIXED, -1, 0, ${a + 4n * PAGE}) if False else mmap(8 * PAGE)`);
    failFrames(kernel, 1);
    expect(memory.pin(a, 4, true)).toBe(ENOMEM);
    failFrames(kernel, 2);
    await peer.ask(`mmap(4 * PAGE, RW, SHARED | FIXED, memfd(4 * PAGE), 0, ${b + 4n * PAGE})`);
    expect(memory.pin(b, 8, true)).toBe(ENOMEM);
    failFrames(kernel, undefined);
    memory.unpin(pinned(memory.pin(b, 8, true)), true);
  });
});

describe("a pin of shared memory", () => {
  it("is of the file: any mapping of any process gives the same frames", async () => {
    const a = await addr("globals().update(fd=memfd(8 * PAGE)) or mmap(8 * PAGE, RW, SHARED, fd)");
    const b = await addr("mmap(4 * PAGE, RW, SHARED, fd, 4 * PAGE)");
    const other = await another();
    const c = await addr(
      `mmap(2 * PAGE, R, SHARED, os.open("/proc/${peer.pid}/fd/%d" % ${await peer.ask("fd")}, os.O_RDONLY), 4 * PAGE)`,
      other.peer,
    );
    const all = pinned(memory.pin(a, 8, true));
    const tail = pinned(memory.pin(b, 4, true));
    const theirs = pinned(other.memory.pin(c, 2, false));
    expect(tail).toEqual(all.slice(4));
    expect(theirs).toEqual(all.slice(4, 6));
    expect(other.memory.pin(c, 2, true)).toBe(EFAULT);
    dmaWrite(theirs[1], "everywhere");
    expect(await cpuRead(a + 5n * PAGE, 10)).toBe("everywhere");
    expect(await cpuRead(c + PAGE, 10, other.peer)).toBe("everywhere");
    other.memory.unpin(theirs, false);
    memory.unpin([...all, ...tail], true);
    other.memory.destroy();
  });

  it("survives munmap, close and the process", async () => {
    const a = await addr("globals().update(fd=memfd(2 * PAGE)) or mmap(2 * PAGE, RW, SHARED, fd)");
    await cpuWrite(a + PAGE, "kept");
    const pfns = pinned(memory.pin(a, 2, true));
    memory.leaving(a, 2n * PAGE, "munmap");
    await peer.ask(`munmap(${a}, 2 * PAGE)`);
    expect(dmaRead(pfns[1], 4)).toBe("kept");
    dmaWrite(pfns[1], "by the device");
    expect(await peer.ask("os.pread(fd, 13, PAGE).decode()")).toBe("by the device");
    await peer.ask("os.close(fd)");
    expect(dmaRead(pfns[1], 13)).toBe("by the device");
    await peer.end();
    memory.destroy();
    expect(dmaRead(pfns[1], 13)).toBe("by the device");
    expect(dmaWrite(pfns[0], "still")).toBe(true);
    expect(dmaRead(pfns[0], 5)).toBe("still");
    expect(events).toEqual([]);
    memory.unpin(pfns, true);
  });

  it("writes to a file whose descriptor appends, where the page is", async () => {
    const a = await addr("globals().update(fd=memfd(PAGE)) or fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND) or mmap(PAGE, RW, SHARED, fd)");
    shared.mapFiles = false;
    const pfns = pinned(memory.pin(a, 1, true));
    expect(dmaWrite(pfns[0], "here", 16)).toBe(true);
    expect(await cpuRead(a + 16n, 4)).toBe("here");
    expect(await peer.ask("os.fstat(fd).st_size")).toBe(4096);
    memory.unpin(pfns, true);
  });

  it("finds no page that was cut off, and makes the file no longer", async () => {
    const a = await addr("globals().update(fd=memfd(3 * PAGE)) or mmap(3 * PAGE, RW, SHARED, fd)");
    const pfns = pinned(memory.pin(a, 3, true));
    await peer.ask("os.ftruncate(fd, PAGE + 100)");
    expect(dmaWrite(pfns[2], "x")).toBe(false);
    expect(dmaRead(pfns[2], 1)).toBeUndefined();
    // What the last page has past the end is nobody's: it takes what it is given, and shows zeros.
    expect(dmaWrite(pfns[1], "0123456789", 95)).toBe(true);
    expect(dmaRead(pfns[1], 10, 95)).toBe("01234\0\0\0\0\0");
    expect(await peer.ask("os.fstat(fd).st_size")).toBe(4196);
    expect(events).toMatchObject([{ type: "mm.lost", why: "truncated", page: 2, write: true }]);
    memory.unpin(pfns, true);
  });

  it("cannot write to a file that was sealed since", async () => {
    const a = await addr("globals().update(fd=memfd(PAGE)) or globals().update(a=mmap(PAGE, RW, SHARED, fd)) or a");
    const pfns = pinned(memory.pin(a, 1, true));
    // F_ADD_SEALS, F_SEAL_FUTURE_WRITE: the mapping that exists goes on, and devices reach the file through it.
    await peer.ask("fcntl.fcntl(fd, 1033, 16)");
    expect(dmaWrite(pfns[0], "mapped")).toBe(true);
    expect(await cpuRead(a, 6)).toBe("mapped");
    memory.leaving(a, PAGE, "munmap");
    await peer.ask("munmap(a, PAGE)");
    // F_SEAL_WRITE. Linux would answer EBUSY while a page is pinned; the real one does not know of the pin.
    await peer.ask("fcntl.fcntl(fd, 1033, 8)");
    expect(dmaWrite(pfns[0], "x")).toBe(false);
    expect(dmaRead(pfns[0], 6)).toBe("mapped");
    expect(events).toMatchObject([{ type: "mm.lost", why: "read-only" }]);
    memory.unpin(pfns, true);
  });
});

it("shared memory that only a child pinned lives on in its parent when the child goes", async () => {
  shared.mapFiles = false;
  const a = await addr("mmap(2 * PAGE, RW, SHARED | ANON)");
  const child = await peer.ask("globals().update(child=forked()) or child");
  const childTarget = { pid: child, tid: child, alive: true };
  const childMemory = new ProcessMemory(shared, childTarget);
  const pfns = pinned(childMemory.pin(a, 2, true));
  childMemory.leaving(0n, childMemory.end, "exit");
  await peer.ask("os.kill(child, 9)");
  await peer.ask("os.waitpid(child, 0)[1]");
  childTarget.alive = false;
  childMemory.destroy();
  await cpuWrite(a + PAGE, "from the parent");
  expect(dmaRead(pfns[1], 15)).toBe("from the parent");
  expect(dmaWrite(pfns[0], "for the parent")).toBe(true);
  expect(await cpuRead(a, 14)).toBe("for the parent");
  expect(events).toEqual([]);
  childMemory.unpin(pfns, true);
});

describe.each([
  ["as root, through map_files", true],
  ["with no more rights than the program's", false],
])("shared memory that has no descriptor, %s", (_how, root) => {
  it.skipIf(root && process.geteuid?.() !== 0)("is pinned, and lives as long as anything shows it", async () => {
    shared.mapFiles = root;
    const a = await addr("mmap(4 * PAGE, RW, SHARED | ANON)");
    await cpuWrite(a, "inherited");
    const child = await peer.ask("globals().update(child=forked()) or child");
    const childTarget = { pid: child, tid: child, alive: true };
    const childMemory = new ProcessMemory(shared, childTarget);
    const pfns = pinned(memory.pin(a, 4, true));
    const same = pinned(childMemory.pin(a, 1, true));
    expect(same).toEqual(pfns.slice(0, 1));
    dmaWrite(pfns[3], "both");
    expect(await cpuRead(a + 3n * PAGE, 4)).toBe("both");
    memory.leaving(a, 2n * PAGE, "munmap");
    await peer.ask(`munmap(${a}, 2 * PAGE)`);
    // The child still shows it.
    dmaWrite(pfns[0], "to the child");
    const dst = new Uint8Array(12);
    expect(childMemory.read(a, dst)).toBe(0);
    expect(text(dst)).toBe("to the child");
    expect(events).toEqual([]);
    await peer.ask("os.kill(child, 9)");
    await peer.ask("os.waitpid(child, 0)[1]");
    childTarget.alive = false;
    childMemory.destroy();
    expect(dmaRead(pfns[0], 12)).toBe(root ? "to the child" : undefined);
    expect(dmaRead(pfns[3], 4)).toBe("both");
    memory.leaving(a + 2n * PAGE, 2n * PAGE, "munmap");
    await peer.ask(`munmap(${a + 2n * PAGE}, 2 * PAGE)`);
    dmaWrite(pfns[2], "apart");
    expect(dmaRead(pfns[2], 5)).toBe("apart");
    expect(dmaRead(pfns[3], 4)).toBe("both");
    if (root) expect(events).toEqual([]);
    else {
      expect(events).toMatchObject([
        { type: "mm.lost", page: 0, why: "exited" },
        { type: "mm.kept", page: 2, npages: 2, why: "munmap" },
      ]);
    }
    childMemory.unpin(same, true);
    memory.unpin(pfns, true);
  });
});

describe("what leaves an address", () => {
  it("by munmap lives on, apart from what is mapped there next", async () => {
    const a = await addr("mmap(4 * PAGE)");
    await cpuWrite(a + PAGE, "old");
    const pfns = pinned(memory.pin(a, 4, true));
    memory.leaving(a, 3n * PAGE, "munmap");
    await peer.ask(`munmap(${a}, 3 * PAGE)`);
    await peer.ask(`mmap(3 * PAGE, RW, PRIVATE | ANON | FIXED, -1, 0, ${a})`);
    await cpuWrite(a + PAGE, "new");
    expect(dmaRead(pfns[1], 3)).toBe("old");
    expect(dmaWrite(pfns[1], "dma")).toBe(true);
    expect(dmaWrite(pfns[0], "z", 4095)).toBe(true);
    expect(dmaRead(pfns[1], 3)).toBe("dma");
    expect(dmaRead(pfns[0], 2, 4094)).toBe("\0z");
    expect(dmaRead(pfns[2], 2)).toBe("\0\0");
    expect(await cpuRead(a + PAGE, 3)).toBe("new");
    const next = pinned(memory.pin(a, 4, true));
    expect(next[3]).toBe(pfns[3]);
    expect(next.slice(0, 3).some((p) => pfns.includes(p))).toBe(false);
    expect(dmaRead(next[1], 3)).toBe("new");
    expect(events).toEqual([{ type: "mm.kept", origin: `process ${peer.pid}`, page: Number(a >> 12n), npages: 3, why: "munmap" }]);
    memory.unpin(pfns, true);
    expect(shared.budget.apart).toBe(0);
    memory.unpin(next, true);
  });

  it("by MADV_DONTNEED lives on; shared memory stays where it is", async () => {
    const a = await addr("mmap(PAGE)");
    const b = await addr("mmap(PAGE, RW, SHARED | ANON)");
    await cpuWrite(a, "old");
    await cpuWrite(b, "old");
    const [p] = pinned(memory.pin(a, 1, true));
    const [q] = pinned(memory.pin(b, 1, true));
    for (const at of [a, b]) {
      memory.leaving(at, PAGE, "madvise", { privateOnly: true });
      await peer.ask(`madvise(${at}, PAGE, 4)`);
    }
    expect(await cpuRead(a, 3)).toBe("\0\0\0");
    expect([dmaRead(p, 3), dmaRead(q, 3)]).toEqual(["old", "old"]);
    dmaWrite(q, "new");
    expect(await cpuRead(b, 3)).toBe("new");
    memory.unpin([p as Pfn, q as Pfn], true);
  });

  it("is lost when more leaves at once than may be held", async () => {
    shared.budget.limit = 2;
    const a = await addr("mmap(4 * PAGE)");
    const pfns = pinned(memory.pin(a, 4, true));
    memory.leaving(a, 4n * PAGE, "munmap");
    await peer.ask(`munmap(${a}, 4 * PAGE)`);
    expect(pfns.map((p) => dmaRead(p, 1))).toEqual(["\0", "\0", undefined, undefined]);
    expect(events.filter((e) => e.type === "mm.lost")).toMatchObject([{ why: "unmapped" }, { why: "unmapped" }]);
    memory.unpin(pfns, true);
  });

  it("and was not foretold is lost as soon as a device comes for it", async () => {
    const a = await addr("mmap(PAGE)");
    const pfns = pinned(memory.pin(a, 1, true));
    await peer.ask(`munmap(${a}, PAGE)`);
    expect(dmaRead(pfns[0], 1)).toBeUndefined();
    expect(events).toMatchObject([{ type: "mm.lost", why: "unmapped" }]);
    memory.unpin(pfns, true);
  });
});

it("a pin of more than there is fails at once, however large the mapping", async () => {
  const a = await addr("mmap(1 << 40, RW, PRIVATE | ANON | 0x4000)");
  memory.unpin(pinned(memory.pin(a, 1, true)), true);
  const from = performance.now();
  expect(memory.pin(a, 2 ** 28, true)).toBe(ENOMEM);
  expect(performance.now() - from).toBeLessThan(1000);
});

describe("a pin of 1 GiB", () => {
  it.each(["PRIVATE | ANON", "SHARED | ANON"])("of %s memory is made of runs", async (flags) => {
    const npages = 1 << 18;
    const a = await addr(`mmap(${npages} * PAGE, RW, ${flags})`);
    kernel.phys.addRam(0x1_0000_0000n as never, 0x8000_0000n);
    const heap = process.memoryUsage().heapUsed;
    const from = performance.now();
    const pfns = pinned(memory.pin(a, npages, true));
    const took = performance.now() - from;
    expect(pfns.length).toBe(npages);
    dmaWrite(pfns[npages - 1], "the end", 4089);
    expect(await cpuRead(a + BigInt(npages) * PAGE - 7n, 7)).toBe("the end");
    expect(process.memoryUsage().heapUsed - heap).toBeLessThan(64 << 20);
    memory.unpin(pfns, true);
    expect(took).toBeLessThan(2000);
    // Frames that were used before are put in order again.
    const again = pinned(memory.pin(a, npages, true));
    expect((again[npages - 1] as Pfn) - (again[0] as Pfn)).toBe(npages - 1);
    memory.unpin(again, true);
  });
});
