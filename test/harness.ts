/**
 * What every test of the kernel ends with: nothing is left behind.
 *
 * The counters of memory and files are known here; another subsystem adds its
 * own to `kernel.leakChecks` when it is set up, and they are checked with the
 * rest.
 */
import { expect } from "vitest";
import type { Process } from "../src/kernel/fs/process.ts";
import { Kernel } from "../src/kernel/kernel.ts";
import { Errno } from "../src/lib/errno.ts";
import { KernelBug } from "../src/lib/kernel_bug.ts";
import type { Step } from "../src/sched/task.ts";
import { MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE } from "../src/uapi/index.ts";

/** Lets every process exit, runs what is pending, and expects all counters to be zero. */
export function expectNothingLeaks(kernel: Kernel): void {
  for (const p of [...kernel.fs.processes.values()]) p.run(p.exit());
  for (const path of [...kernel.fs.tmpfs.keys()]) kernel.fs.unlink(path);
  kernel.sched.settle();
  expect(leaks(kernel)).toEqual({});
}

/** Counters that are not zero, by name. */
export function leaks(kernel: Kernel): Record<string, number> {
  const { fs, frames, sched } = kernel;
  const counts: [string, number][] = [
    ["open files", fs.openFiles],
    ["processes", fs.processes.size],
    ["mm structs", fs.liveMms],
    ["page caches", fs.pageCaches],
    ["eventfd contexts", fs.eventfds],
    ["pages charged to users", fs.lockedVm],
    ["frames pinned", frames.pinned],
    ["frames live", frames.live],
    ["stray accesses to RAM", frames.strayAccesses],
    ["live tasks", sched.liveTasks().length],
    ...[...kernel.leakChecks].map(([name, count]): [string, number] => [name, count()]),
  ];
  return Object.fromEntries(counts.filter(([, n]) => n !== 0));
}

/** From the n-th on (1: the next) no more frame of RAM is to be had, until `undefined` is given. */
export function failFrames(kernel: Kernel, n: number | undefined): void {
  let left = n ?? 0;
  kernel.fault.decide(n === undefined ? undefined : ({ highmem }) => highmem && --left <= 0);
}

/** The value of a call that must succeed. */
export function ok<T>(r: T): Exclude<T, Errno> {
  if (r instanceof Errno) throw new KernelBug(`unexpected ${r.name}`);
  return r as Exclude<T, Errno>;
}

/** A kernel and one root process in it. */
export function boot(): { kernel: Kernel; p: Process } {
  const kernel = new Kernel();
  return { kernel, p: kernel.fs.createProcess({ name: "p" }) };
}

/** A user without capabilities whose processes may lock `memlock` bytes. */
export function unprivileged(kernel: Kernel, memlock: bigint, uid = 1000): Process {
  return kernel.fs.createProcess({ name: `u${uid}`, uid, capabilities: [], memlock });
}

/** Runs a call of `p` and returns its value; it must succeed. */
export function run<T>(p: Process, body: Step<T>): Exclude<T, Errno> {
  return ok(p.run(body));
}

/** Private anonymous memory of `p`; returns its address. */
export function memory(p: Process, length: number, prot: number = PROT_READ | PROT_WRITE): bigint {
  return run(p, p.sys.mmap(0n, BigInt(length), prot, MAP_PRIVATE | MAP_ANONYMOUS, -1));
}

/** Puts bytes, or text, into `p`'s memory. */
export function poke(p: Process, addr: bigint, data: Uint8Array | string): number {
  const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
  expect(p.mm.memory.write(addr, bytes)).toBe(0);
  return bytes.length;
}

/** Reads `p`'s memory. */
export function peek(p: Process, addr: bigint, length: number): Uint8Array {
  const out = new Uint8Array(length);
  expect(p.mm.memory.read(addr, out)).toBe(0);
  return out;
}

export const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
