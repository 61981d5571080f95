/** A struct is read along with its size: what the program may see of that, and what it must not. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Kernel } from "../../src/kernel/kernel.ts";
import { ProcessMemory } from "../../src/supervise/process_memory.ts";
import { RealMemory } from "../../src/supervise/real_file.ts";
import { Peer } from "./peer.ts";

let shared: RealMemory;
let peer: Peer;
let memory: ProcessMemory;
let at: bigint;

beforeEach(async () => {
  shared = new RealMemory(new Kernel());
  peer = await Peer.start();
  memory = new ProcessMemory(shared, peer.target);
  at = BigInt(await peer.ask("mmap(2 * PAGE)"));
});

afterEach(async () => {
  await peer.end();
  memory.destroy();
});

/** The first of `count` bytes at `address`. */
function first(address: bigint, count: number): number {
  const dst = new Uint8Array(count);
  expect(memory.read(address, dst)).toBe(0);
  return dst[0] as number;
}

describe("the copy of a struct after the copy of its size", () => {
  it("is of the moment at which the size was read", async () => {
    await peer.ask(`poke(${at}, "41")`);
    expect(first(at, 4)).toBe(0x41);
    await peer.ask(`poke(${at}, "42")`);
    expect(first(at, 24)).toBe(0x41);
    expect(first(at, 24)).toBe(0x42);
  });

  it("is made anew in the next call, after a write, and from another address", async () => {
    await peer.ask(`poke(${at}, "41")`);
    expect(first(at, 4)).toBe(0x41);
    await peer.ask(`poke(${at}, "42")`);
    shared.calls++;
    expect(first(at, 24)).toBe(0x42);

    expect(first(at, 4)).toBe(0x42);
    expect(memory.write(at + 100n, new Uint8Array(1))).toBe(0);
    await peer.ask(`poke(${at}, "43")`);
    expect(first(at, 24)).toBe(0x43);

    expect(first(at, 4)).toBe(0x43);
    await peer.ask(`poke(${at} + 8, "44")`);
    expect(first(at + 8n, 16)).toBe(0x44);
  });

  it("does not read past a page that ends with the size", async () => {
    await peer.ask(`munmap(${at} + PAGE, PAGE)`);
    const end = at + 4096n;
    expect(first(end - 4n, 4)).toBe(0);
    expect(memory.read(end - 4n, new Uint8Array(24))).toBe(20);
    expect(first(end - 64n, 4)).toBe(0);
    expect(memory.read(end - 64n, new Uint8Array(72))).toBe(8);
  });
});
