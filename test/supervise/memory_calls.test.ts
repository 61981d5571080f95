import { afterEach, beforeEach, expect, it } from "vitest";
import { Kernel } from "../../src/kernel/kernel.ts";
import type { Pfn } from "../../src/lib/addr.ts";
import { registerMemoryCalls } from "../../src/supervise/memory_calls.ts";
import * as numbers from "../../src/supervise/numbers.ts";
import { ProcessMemory } from "../../src/supervise/process_memory.ts";
import { RealMemory } from "../../src/supervise/real_file.ts";
import type { Handler, Supervisor, TrappedCall, When } from "../../src/supervise/types.ts";
import { leaks } from "../harness.ts";
import { Peer } from "./peer.ts";

const PAGE = 4096n;
const handlers = new Map<number, { handler: Handler; when: readonly When[] }>();
const processes: unknown[] = [];
registerMemoryCalls({
  handle: (nr: number, handler: Handler, ...when: When[]) => handlers.set(nr, { handler, when }),
  processes,
} as unknown as Supervisor);

let peer: Peer;
let kernel: Kernel;
let memory: ProcessMemory;
let lost: string[];

beforeEach(async () => {
  kernel = new Kernel();
  const shared = new RealMemory(kernel);
  lost = [];
  shared.budget.onLost = (_store, why) => lost.push(why);
  peer = await Peer.start();
  memory = new ProcessMemory(shared, peer.target);
});
afterEach(async () => {
  await peer.end();
  memory.destroy();
  expect(leaks(kernel)).toEqual({});
});

/** A call as the loop hands it over: every handler lets the real kernel do it. */
function trapped(nr: number, ...args: (bigint | number)[]): void {
  const call = { memory, args: Array.from({ length: 6 }, (_, i) => BigInt(args[i] ?? 0)) } as unknown as TrappedCall;
  const handler = handlers.get(nr)?.handler;
  if (handler?.concerns?.(call) === false) return;
  const step = handler?.(call).next();
  expect(step).toEqual({ done: true, value: undefined });
}

const addr = async (code: string): Promise<bigint> => BigInt(await peer.ask(code));
const poke = (at: bigint, s: string): Promise<unknown> => peer.ask(`poke(${at}, "${Buffer.from(s).toString("hex")}")`);
const pin = (at: bigint, n: number): Pfn[] => memory.pin(at, n, true) as Pfn[];
function dma(pfn: Pfn | undefined, n: number): string | undefined {
  const dst = new Uint8Array(n);
  return kernel.frames.readFrame(pfn as Pfn, 0, dst) ? Buffer.from(dst).toString() : undefined;
}

it("only what can take pages away is trapped", () => {
  expect([...handlers.keys()].map((nr) => Object.entries(numbers).find(([, n]) => n === nr)?.[0]).sort()).toEqual([
    "SYS_brk",
    "SYS_exit_group",
    "SYS_madvise",
    "SYS_mmap",
    "SYS_mremap",
    "SYS_munmap",
    "SYS_shmdt",
  ]);
  expect(handlers.get(numbers.SYS_mmap)?.when).toEqual([{ kind: "bits", arg: 3, bits: 0x10 }]);
});

it("munmap and mmap with MAP_FIXED leave the device its page; calls that fail leave it shared", async () => {
  const a = await addr("mmap(2 * PAGE)");
  await poke(a, "one");
  await poke(a + PAGE, "two");
  const pfns = pin(a, 2);
  trapped(numbers.SYS_munmap, a + 1n, PAGE);
  trapped(numbers.SYS_munmap, a, 0);
  trapped(numbers.SYS_munmap, a, 0x7fff_ffff_f000n);
  trapped(numbers.SYS_munmap, a, 0xffff_ffff_ffff_f000n);
  trapped(numbers.SYS_mmap, a, PAGE, 3, 0x32, -1, 5);
  trapped(numbers.SYS_mmap, a, PAGE, 3, 0x30, -1, 0);
  trapped(numbers.SYS_mmap, a, PAGE, 3, 0x11, 999, 0);
  trapped(numbers.SYS_mmap, a, 0x7fff_ffff_f000n, 3, 0x32, -1, 0);
  trapped(numbers.SYS_mremap, a, PAGE, PAGE, 2, a + PAGE);
  expect(memory.pinned).toBe(true);
  await poke(a, "uno");
  expect(dma(pfns[0], 3)).toBe("uno");
  trapped(numbers.SYS_munmap, a, 1);
  await peer.ask(`munmap(${a}, PAGE)`);
  trapped(numbers.SYS_mmap, a + PAGE, PAGE, 3, 0x32, -1, 0);
  await peer.ask(`mmap(PAGE, RW, PRIVATE | ANON | FIXED, -1, 0, ${a + PAGE})`);
  expect(pfns.map((p) => dma(p, 3))).toEqual(["uno", "two"]);
  expect(memory.pinned).toBe(false);
  memory.unpin(pfns, true);
});

it("mremap leaves the device what it cuts off and what it covers", async () => {
  const a = await addr("mmap(4 * PAGE)");
  await poke(a + 2n * PAGE, "tail");
  const pfns = pin(a, 4);
  trapped(numbers.SYS_mremap, a, 4n * PAGE, 2n * PAGE, 0, 0);
  await peer.ask(`mremap(${a}, 4 * PAGE, 2 * PAGE)`);
  expect(dma(pfns[2], 4)).toBe("tail");
  await poke(a, "head");
  expect(dma(pfns[0], 4)).toBe("head");
  memory.unpin(pfns, true);
});

it("mremap that grows where it is keeps device and program together", async () => {
  const a = await addr("mmap(8 * PAGE)");
  await peer.ask(`munmap(${a + 2n * PAGE}, 6 * PAGE)`);
  const pfns = pin(a, 2);
  trapped(numbers.SYS_mremap, a, 2n * PAGE, 4n * PAGE, 1, 0);
  expect(await addr(`mremap(${a}, 2 * PAGE, 4 * PAGE, 1)`)).toBe(a);
  await poke(a, "same");
  expect(dma(pfns[0], 4)).toBe("same");
  memory.unpin(pfns, true);
});

it("mremap that moves loses the page, and says so", async () => {
  const a = await addr("mmap(3 * PAGE)");
  await peer.ask(`mprotect(${a + 2n * PAGE}, PAGE, R)`);
  const pfns = pin(a, 2);
  trapped(numbers.SYS_mremap, a, 2n * PAGE, 64n * PAGE, 1, 0);
  expect(await addr(`mremap(${a}, 2 * PAGE, 64 * PAGE, 1)`)).not.toBe(a);
  await peer.ask(`mmap(2 * PAGE, RW, PRIVATE | ANON | FIXED, -1, 0, ${a})`);
  await poke(a, "stranger");
  expect(dma(pfns[0], 8)).toBeUndefined();
  expect(lost).toEqual(["moved"]);
  memory.unpin(pfns, true);
});

it("brk to a lower address leaves the device the heap that goes", async () => {
  await peer.ask("libc.sbrk.restype = ctypes.c_size_t");
  const end = await addr("libc.sbrk(ctypes.c_ssize_t(4 * PAGE)) + 4 * PAGE");
  const a = ((end + PAGE - 1n) & ~(PAGE - 1n)) - 3n * PAGE;
  await poke(a + PAGE, "heap");
  const pfns = pin(a, 2);
  trapped(numbers.SYS_brk, 0);
  trapped(numbers.SYS_brk, end);
  trapped(numbers.SYS_brk, end + PAGE);
  await poke(a + PAGE, "Heap");
  expect(dma(pfns[1], 4)).toBe("Heap");
  trapped(numbers.SYS_brk, a + PAGE - 8n);
  await peer.ask(`libc.brk(ctypes.c_size_t(${a + PAGE - 8n}))`);
  expect(dma(pfns[1], 4)).toBe("Heap");
  await poke(a, "low");
  expect(dma(pfns[0], 3)).toBe("low");
  memory.unpin(pfns, true);
});

it("shmdt leaves the device the segment when nobody else shows it", async () => {
  await peer.ask("libc.shmat.restype = ctypes.c_ssize_t");
  await peer.ask("libc.shmdt.argtypes = [ctypes.c_size_t]");
  const a = await addr("globals().update(id=checked(libc.shmget(0, 4096, 0o1600))) or libc.shmat(id, None, 0)");
  memory.shared.mapFiles = false;
  const pfns = pin(a, 1);
  await poke(a, "sysv");
  trapped(numbers.SYS_shmdt, a);
  await peer.ask(`libc.shmdt(${a}) or libc.shmctl(id, 0, None)`);
  expect(dma(pfns[0], 4)).toBe("sysv");
  memory.unpin(pfns, true);
});

it("an exit leaves the device the pages while other processes may use it", async () => {
  const a = await addr("mmap(PAGE)");
  await poke(a, "last");
  const pfns = pin(a, 1);
  processes.push(1);
  trapped(numbers.SYS_exit_group, 0);
  await poke(a, "LAST");
  expect(dma(pfns[0], 4)).toBe("LAST");
  processes.push(2);
  trapped(numbers.SYS_exit_group, 0);
  await peer.end();
  expect(dma(pfns[0], 4)).toBe("LAST");
  expect(lost).toEqual([]);
  memory.unpin(pfns, true);
});
