/** A port with flat memory behind it and a clock that the test moves. */
import type { PciPort } from "../../src/devices/index.ts";
import { Sched, type Timer } from "../../src/sched/index.ts";

export class FakePort implements PciPort {
  readonly sched: Sched = new Sched();
  /** Physical memory from address 0. */
  readonly memory: Uint8Array = new Uint8Array(0x10000);
  readonly dma: string[] = [];
  intx = false;
  messages: number[] = [];

  get now(): number {
    return this.sched.now;
  }

  dmaRead(addr: bigint, dst: Uint8Array): boolean {
    return this.#access("read", addr, dst, (at) => dst.set(this.memory.subarray(at, at + dst.length)));
  }

  dmaWrite(addr: bigint, src: Uint8Array): boolean {
    return this.#access("write", addr, src, (at) => this.memory.set(src, at));
  }

  raiseIntx(): void {
    this.intx = true;
  }

  lowerIntx(): void {
    this.intx = false;
  }

  msi(vector: number): void {
    this.messages.push(vector);
  }

  delay(ns: number, fn: () => void): Timer {
    return this.sched.timer(ns, fn);
  }

  #access(what: string, addr: bigint, buf: Uint8Array, go: (at: number) => void): boolean {
    this.dma.push(`${what} 0x${addr.toString(16)} ${buf.length}`);
    const inside = addr + BigInt(buf.length) <= BigInt(this.memory.length);
    if (inside) go(Number(addr));
    else if (what === "read") buf.fill(0);
    return inside;
  }
}
