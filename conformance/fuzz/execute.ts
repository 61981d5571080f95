/** Makes a sequence of calls (`program.ts`) on a fresh embedded machine; the counterpart of `fuzz.c`. */
import { EmbeddedHost, type EmbeddedTransport } from "../../src/client/index.ts";
import { checkInvariants } from "../../src/kernel/iommufd/check.ts";
import { Errno } from "../../src/lib/index.ts";
import type { MachineDescription } from "../../src/machine/schema.ts";
import * as u from "../../src/uapi/index.ts";
import { plan } from "./generate.ts";
import {
  ARENA,
  ARENA_BYTES,
  type Call,
  DATA,
  DATA_PAGES,
  type Data,
  type Fd,
  FILL,
  GUARD,
  HEX,
  type Link,
  PAGE,
  RO,
  type Sequence,
  SLOTS,
} from "./program.ts";

export const DEVICES: Readonly<Record<string, string>> = { "@edu": "0000:01:00.0", "@ivshmem": "0000:02:00.0", "@nvme": "0000:03:00.0" };
const STANDARD_STREAMS = 3;
const REGION_SHIFT = 40n;
const MS = 1_000_000;
const RW = u.PROT_READ | u.PROT_WRITE;
const CAPABILITIES: Readonly<Record<number, string>> = {
  [u.CAP_IPC_LOCK]: "CAP_IPC_LOCK",
  [u.CAP_SYS_RESOURCE]: "CAP_SYS_RESOURCE",
  [u.CAP_SYS_ADMIN]: "CAP_SYS_ADMIN",
  [u.CAP_SYS_RAWIO]: "CAP_SYS_RAWIO",
};

export interface Outcome {
  /** One line a call, as `fuzz.c` prints it. Fewer than calls when the kernel broke. */
  readonly answers: string[];
  /** A broken invariant, a lockdep report, a leak: what, and after how many calls. */
  readonly broken?: { readonly what: string; readonly after: number };
}

const arenaImage = new Uint8Array(ARENA_BYTES);
const arenaAfter = new Uint8Array(ARENA_BYTES);

class Machine {
  readonly #host: EmbeddedHost;
  readonly #os: EmbeddedTransport;
  readonly #slots = new Uint8Array(SLOTS * 8).fill(0xff);
  readonly #slotView = new DataView(this.#slots.buffer);

  constructor(description: MachineDescription) {
    this.#host = EmbeddedHost.boot(description, { selftest: true });
    this.#os = this.#host.os;
    const { sys } = this.#os.process;
    for (let i = 0; i < STANDARD_STREAMS; i++) this.#os.open("/dev/null", u.O_RDWR);
    const map = (at: bigint, length: number, prot: number): void => {
      const flags = u.MAP_PRIVATE | u.MAP_ANONYMOUS | u.MAP_FIXED;
      const r = this.#os.process.run(sys.mmap(at, BigInt(length), prot, flags, -1));
      if (r instanceof Errno) throw new RangeError(`memory at 0x${at.toString(16)}: ${r.name}`);
    };
    map(ARENA, ARENA_BYTES, RW);
    map(GUARD, PAGE, u.PROT_NONE);
    map(RO, PAGE, u.PROT_READ);
    map(DATA, DATA_PAGES * PAGE, RW);
    const pages = new Uint8Array(DATA_PAGES * PAGE);
    for (let i = 0; i < DATA_PAGES; i++) pages.fill(i + 1, i * PAGE, (i + 1) * PAGE);
    this.#write(DATA, pages);
  }

  get kernel(): EmbeddedHost["kernel"] {
    return this.#host.kernel;
  }

  /** Ends the program; what is left on the machine. */
  shutdown(): Readonly<Record<string, number>> {
    return this.#host.shutdown();
  }

  perform(c: Call): string {
    const { data } = c;
    const at = data === undefined ? 0n : this.#lay(data);
    const result = this.#call(c, at);
    // What a device or a work queue does soon is done before the next call comes.
    this.#host.advance(MS);
    const failed = result instanceof Errno;
    let text = failed ? result.name : `${result ?? 0}`;
    if (data !== undefined) text += this.#changed();
    if (failed) return text;
    if (c.save !== undefined)
      this.#slotView.setBigUint64(c.save * 8, BigInt.asUintN(64, BigInt(Number.parseInt(`${result ?? 0}`, 10))), true);
    for (const k of data?.keeps ?? []) this.#keep(at, k);
    return text;
  }

  #call(c: Call, at: bigint): number | bigint | string | Errno | undefined {
    const os = this.#os;
    const { sys } = os.process;
    const run = os.process.run.bind(os.process);
    const n = (i: number): bigint => {
      const v = c.n[i] ?? 0n;
      return typeof v === "bigint" ? v : this.#slotView.getBigUint64(v.slot * 8, true);
    };
    const int = (i: number): number => Number(BigInt.asIntN(32, n(i)));
    const fd = this.#fd(c.fd ?? -1);
    switch (c.op) {
      case "ioctl":
        return os.ioctl(fd, Number(n(0)), at);
      case "open": {
        const path = c.path ?? "";
        return os.open(DEVICES[path] === undefined ? path : (os.vfioDevicePath(DEVICES[path]) ?? ""), int(0));
      }
      case "close": {
        const r = os.close(fd);
        if (!(r instanceof Errno) && typeof c.fd === "object") this.#slots.fill(0xff, c.fd.slot * 8, c.fd.slot * 8 + 8);
        return r;
      }
      case "dup":
        return run(sys.dup(fd));
      case "memfd": {
        const made = os.memfdCreate("fuzz", int(0));
        if (!(made instanceof Errno)) os.ftruncate(made, n(1));
        return made;
      }
      case "truncate":
        return run(sys.ftruncate(fd, n(0)));
      case "eventfd":
        return os.eventfd(0, u.EFD_NONBLOCK);
      case "read":
        return run(sys.read(fd, at, int(0)));
      case "write":
        return run(sys.write(fd, at, c.data?.bytes.length ?? 0));
      case "pread":
        return run(sys.pread(fd, at, int(2), (n(0) << REGION_SHIFT) + n(1)));
      case "pwrite":
        return run(sys.pwrite(fd, at, c.data?.bytes.length ?? 0, (n(0) << REGION_SHIFT) + n(1)));
      case "mmap": {
        const flags = int(3);
        const r = run(sys.mmap(n(0), n(1), int(2), flags, fd, n(4)));
        return r instanceof Errno ? r : 0;
      }
      case "munmap":
        return run(sys.munmap(n(0), n(1)));
      case "mprotect":
        return run(sys.mprotect(n(0), n(1), int(2)));
      case "look":
        return this.#look(n(0), int(1));
      case "poke":
        return int(1) - os.process.mm.memory.write(n(0), new Uint8Array(int(1)).fill(int(2)));
      case "poll": {
        const r = os.poll([{ fd, events: int(0) }], 0);
        return r instanceof Errno ? r : `${r.ready}/${r.revents[0]}`;
      }
      case "memlock":
        os.process.rlimits.memlock = n(0);
        return 0;
      case "drop":
        os.process.creds.capabilities.delete(CAPABILITIES[int(0)] ?? "");
        return 0;
      case "sleep":
        this.#host.advance(int(0) * MS);
        return 0;
    }
  }

  /** Bytes that can be read, and FNV-1a of them. */
  #look(at: bigint, length: number): string {
    const bytes = new Uint8Array(length);
    const n = length - this.#os.process.mm.memory.read(at, bytes);
    let h = 0x811c9dc5;
    for (let i = 0; i < n; i++) h = Math.imul(h ^ (bytes[i] as number), 0x01000193);
    return `${n}/${(h >>> 0).toString(16)}`;
  }

  #fd(fd: Fd): number {
    return typeof fd === "number" ? fd : this.#slotView.getInt32(fd.slot * 8, true);
  }

  /** Fills the arena and lays the bytes down; where they are. */
  #lay(data: Data): bigint {
    arenaImage.fill(FILL);
    for (const m of data.more) arenaImage.set(m.bytes, m.at);
    const bytes = data.patches.length === 0 ? data.bytes : data.bytes.slice();
    for (const p of data.patches) bytes.set(this.#slots.subarray(p.slot * 8, p.slot * 8 + p.width), p.at);
    const { at } = data;
    if (at >= ARENA && at < GUARD) arenaImage.set(bytes.subarray(0, Number(GUARD - at)), Number(at - ARENA));
    this.#write(ARENA, arenaImage);
    if (at >= RO && at < RO + BigInt(PAGE)) {
      this.#os.mprotect(RO, PAGE, RW);
      this.#write(at, bytes.subarray(0, Number(RO + BigInt(PAGE) - at)));
      this.#os.mprotect(RO, PAGE, u.PROT_READ);
    }
    return at;
  }

  #write(at: bigint, bytes: Uint8Array): void {
    const missing = this.#os.process.mm.memory.write(at, bytes);
    if (missing > 0) throw new RangeError(`${missing} bytes of the program's memory cannot be written`);
  }

  /** What the call wrote: runs of changed bytes of the arena by their offsets. */
  #changed(): string {
    this.#os.process.mm.memory.read(ARENA, arenaAfter);
    if (Buffer.compare(arenaAfter, arenaImage) === 0) return "";
    let out = "";
    for (let i = 0; i < ARENA_BYTES; ) {
      if (arenaAfter[i] === arenaImage[i]) {
        i++;
        continue;
      }
      out += ` ${i}:`;
      for (; i < ARENA_BYTES && arenaAfter[i] !== arenaImage[i]; i++) out += HEX[arenaAfter[i] as number];
    }
    return out;
  }

  #keep(at: bigint, { at: offset, slot, width }: Link): void {
    const b = new Uint8Array(width);
    if (this.#os.process.mm.memory.read(at + BigInt(offset), b) === 0) {
      this.#slots.fill(0, slot * 8, slot * 8 + 8);
      this.#slots.set(b, slot * 8);
    }
  }
}

const said = (e: unknown): string => (e instanceof Error ? (e.stack ?? e.message) : String(e));

/** Makes calls of its own making with what it is given. */
type Maker = (perform: (c: Call) => string) => void;

/** Between the calls, every `checkEvery` and at the end, what must hold is checked; after the program's end, that nothing is left. */
function runOn(machine: MachineDescription, checkEvery: number, make: Maker): Outcome {
  const answers: string[] = [];
  try {
    const m = new Machine(machine);
    make((c) => {
      const answer = m.perform(c);
      answers.push(answer);
      if (answers.length % checkEvery === 0) checkInvariants(m.kernel);
      return answer;
    });
    checkInvariants(m.kernel);
    const left = Object.entries(m.shutdown());
    if (left.length > 0)
      return { answers, broken: { what: `left behind: ${left.map(([k, v]) => `${v} ${k}`).join(", ")}`, after: answers.length } };
  } catch (e) {
    return { answers, broken: { what: said(e), after: answers.length } };
  }
  return { answers };
}

const CHECK_EVERY = 25;

/** Makes the calls of a sequence. */
export function execute(sequence: Sequence, machine: MachineDescription, checkEvery: number = CHECK_EVERY): Outcome {
  return runOn(machine, checkEvery, (perform) => {
    for (const c of sequence.calls) perform(c);
  });
}

/** Makes the sequence of a seed up, while it makes its calls. */
export function invent(seed: number, length: number, machine: MachineDescription): Outcome & { readonly sequence: Sequence } {
  const p = plan(seed);
  const calls: Call[] = [];
  const outcome = runOn(machine, CHECK_EVERY, (perform) => {
    p.run(length, (c) => {
      calls.push(c);
      return perform(c);
    });
  });
  return { ...outcome, sequence: { name: p.name, calls } };
}
