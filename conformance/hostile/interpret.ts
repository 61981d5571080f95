/** Makes the calls of a program (`program.ts`) on the embedded kernel; the counterpart of `hostile.c`. */
import { EmbeddedHost, type EmbeddedTransport, readMachine } from "../../src/client/index.ts";
import { Errno } from "../../src/lib/index.ts";
import type { MachineDescription } from "../../src/machine/schema.ts";
import * as u from "../../src/uapi/index.ts";

/** One call's answer; beside these, outputs that only some calls have. */
export interface Answer {
  readonly call: string;
  readonly what: string;
  /** The line of the program. */
  readonly asked: string;
  readonly ret: number;
  readonly errno: string;
  readonly [output: string]: unknown;
}

/** Memory of each process; `hostile.c` says what it is for. */
const PAGE = 0x1000;
const ARENA = 0x10000;
const BIG = 0x600000;
const PLACES: Readonly<Record<string, number>> = { arena: 0, guard: ARENA, ro: ARENA + PAGE, big: ARENA + 3 * PAGE };
const FILL = 0xa5;

const DEVICES: Readonly<Record<string, string>> = { "@edu": "0000:01:00.0", "@ivshmem": "0000:02:00.0", "@nvme": "0000:03:00.0" };
const STANDARD_STREAMS = 3;
/** Time that passes from one call to the next, ns. */
const BETWEEN_CALLS = 1_000_000;

type Words = ReadonlyMap<string, string>;
type Result = number | bigint | Errno | undefined;

function unhex(text: string): Uint8Array {
  return Uint8Array.from({ length: text.length / 2 }, (_, i) => Number.parseInt(text.slice(2 * i, 2 * i + 2), 16));
}

function need(words: Words, name: string): string {
  const v = words.get(name);
  if (v === undefined) throw new RangeError(`a line lacks ${name}`);
  return v;
}

/** One process, from `section` to the next. */
class Runner {
  readonly #host: EmbeddedHost;
  readonly #os: EmbeddedTransport;
  readonly #base: bigint;
  readonly #names = new Map<string, number>();
  #before: Uint8Array = new Uint8Array(ARENA);

  constructor(host: EmbeddedHost, name: string) {
    this.#host = host;
    this.#os = host.newProgram(name).os;
    for (let i = 0; i < STANDARD_STREAMS; i++) this.#os.open("/dev/null", u.O_RDWR);
    this.#base = this.#os.mmapAnonymous(ARENA + 3 * PAGE + BIG).address;
    this.#protect("guard", u.PROT_NONE);
    this.#protect("ro", u.PROT_READ);
    this.#os.mprotect(this.#base + BigInt(ARENA + 2 * PAGE), PAGE, u.PROT_NONE);
  }

  exit(): void {
    this.#os.exit();
  }

  perform(line: string): Answer {
    const [head = "", what = ""] = line.split(" # ");
    const [op = "", ...rest] = head.split(" ");
    const words: Words = new Map(rest.map((w) => [w.slice(0, w.indexOf("=")), w.slice(w.indexOf("=") + 1)]));
    const at = words.has("at") ? this.#lay(words) : undefined;
    const extra: Record<string, unknown> = {};
    const result = this.#call(op, words, at ?? 0n, extra);
    // A device that may fall asleep does so before the next call comes.
    this.#host.advance(BETWEEN_CALLS);
    const failed = result instanceof Errno;
    const ret = failed ? -1 : Number(result ?? 0);
    const changed = at === undefined ? {} : { changed: this.#changed() };
    const save = words.get("save");
    if (save !== undefined && !failed) this.#save(save, at ?? 0n, ret);
    const call = op === "ioctl" ? need(words, "cmd") : op;
    return { call, what, asked: line, ret, errno: failed ? result.name : "", ...changed, ...extra };
  }

  #call(op: string, words: Words, at: bigint, extra: Record<string, unknown>): Result {
    const os = this.#os;
    const sys = os.process.sys;
    const n = (name: string): number => Number(this.#number(need(words, name)));
    const big = (name: string): bigint => BigInt.asUintN(64, this.#number(need(words, name)));
    const signed = (name: string): bigint => BigInt.asIntN(64, this.#number(need(words, name)));
    const fd = words.has("fd") ? n("fd") : -1;
    const run = os.process.run.bind(os.process);
    switch (op) {
      case "ioctl":
        return os.ioctl(fd, commandOf(need(words, "cmd")), at);
      case "open": {
        const path = need(words, "path");
        const device = DEVICES[path];
        return os.open(device === undefined ? path : (os.vfioDevicePath(device) ?? ""), n("flags"));
      }
      case "close":
        return os.close(fd);
      case "dup":
        return run(sys.dup(fd));
      case "memfd": {
        const made = os.memfdCreate("hostile", n("flags"));
        if (!(made instanceof Errno)) os.ftruncate(made, big("size"));
        return made;
      }
      case "eventfd":
        return os.eventfd(0, 0);
      case "pipe": {
        const ends = os.pipe();
        if (ends instanceof Errno) return ends;
        this.#names.set("$reader", ends[0]);
        this.#names.set("$writer", ends[1]);
        return 0;
      }
      case "read":
        return run(sys.read(fd, at, n("length")));
      case "write":
        return run(sys.write(fd, at, n("length")));
      case "pread":
        return run(sys.pread(fd, at, n("length"), signed("position")));
      case "pwrite":
        return run(sys.pwrite(fd, at, n("length"), signed("position")));
      case "lseek":
        return run(sys.lseek(fd, signed("offset"), n("whence")));
      case "ftruncate":
        return run(sys.ftruncate(fd, signed("length")));
      case "fcntl":
        return run(sys.fcntl(fd, n("cmd"), n("arg")));
      case "poll": {
        const r = os.poll([{ fd, events: n("events") }], 0);
        extra.revents = r instanceof Errno ? 0 : r.revents[0];
        return r instanceof Errno ? r : r.ready;
      }
      case "fstat": {
        const s = os.fstat(fd);
        if (s instanceof Errno) return s;
        extra.mode = s.mode;
        extra.size = Number(s.size);
        return 0;
      }
      case "mmap": {
        const a = run(sys.mmap(0n, big("length"), n("prot"), n("flags"), fd, big("offset")));
        if (a instanceof Errno) return a;
        run(sys.munmap(a, big("length")));
        return 0;
      }
      default:
        throw new RangeError(`unknown operation ${op}`);
    }
  }

  #number(text: string): bigint {
    if (text.startsWith("$")) return BigInt(this.#names.get(text) ?? -1);
    return text.startsWith("-") ? -BigInt(text.slice(1)) : BigInt(text);
  }

  #place(text: string): bigint {
    const m = /^(arena|guard|ro|big)([+-]\d+)?$/.exec(text);
    if (m === null) return BigInt(text);
    return this.#base + BigInt(PLACES[m[1] as string] as number) + BigInt(m[2] ?? 0);
  }

  /** Fills the memory and lays the structure down; where it is. */
  #lay(words: Words): bigint {
    const at = this.#place(need(words, "at"));
    const arena = new Uint8Array(ARENA).fill(FILL);
    const bytes = this.#structure(words, arena);
    this.#write(this.#base, arena);
    const fits = this.#room(at);
    const inRo = at >= this.#base + BigInt(ARENA + PAGE) && at < this.#base + BigInt(ARENA + 2 * PAGE);
    if (inRo) this.#protect("ro", u.PROT_READ | u.PROT_WRITE);
    if (fits > 0) this.#write(at, bytes.subarray(0, fits));
    if (inRo) this.#protect("ro", u.PROT_READ);
    this.#before = this.#arena();
    return at;
  }

  #structure(words: Words, arena: Uint8Array): Uint8Array {
    const head = unhex(words.get("hex") ?? "");
    const [count = "0", element = ""] = (words.get("rep") ?? "").split(":");
    const one = unhex(element);
    const bytes = new Uint8Array(Math.min(BIG, head.length + Number(count) * one.length));
    bytes.set(head);
    const view = new DataView(bytes.buffer);
    for (const [name, value] of words) {
      const m = /^([vpm])(\d+)$/.exec(name);
      if (m === null) continue;
      const offset = Number(m[2]);
      if (m[1] === "v") view.setUint32(offset, Number(BigInt.asUintN(32, this.#number(value))), true);
      else if (m[1] === "p") view.setBigUint64(offset, this.#place(value), true);
      else if (value.startsWith("$")) new DataView(arena.buffer).setUint32(offset, Number(this.#number(value)), true);
      else arena.set(unhex(value), offset);
    }
    for (let i = head.length; i + one.length <= bytes.length && one.length > 0; i += one.length) bytes.set(one, i);
    return bytes;
  }

  /** Bytes that fit into the memory at `at`. */
  #room(at: bigint): number {
    const offset = Number(at - this.#base);
    if (offset >= 0 && offset < ARENA) return ARENA - offset;
    if (offset >= ARENA + PAGE && offset < ARENA + 2 * PAGE) return ARENA + 2 * PAGE - offset;
    if (offset >= ARENA + 3 * PAGE && offset < ARENA + 3 * PAGE + BIG) return ARENA + 3 * PAGE + BIG - offset;
    return 0;
  }

  #protect(place: string, prot: number): void {
    this.#os.mprotect(this.#place(place), PAGE, prot);
  }

  #write(at: bigint, bytes: Uint8Array): void {
    const missing = this.#os.process.mm.memory.write(at, bytes);
    if (missing > 0) throw new RangeError(`${missing} bytes of the program's memory cannot be written`);
  }

  #arena(): Uint8Array {
    const out = new Uint8Array(ARENA);
    this.#os.process.mm.memory.read(this.#base, out);
    return out;
  }

  /** What the call wrote: runs of changed bytes of the arena by their offsets. */
  #changed(): Record<string, string> {
    const after = this.#arena();
    const out: Record<string, string> = {};
    for (let i = 0; i < ARENA; ) {
      if (after[i] === this.#before[i]) {
        i++;
        continue;
      }
      const first = i;
      while (i < ARENA && after[i] !== this.#before[i]) i++;
      out[first] = [...after.subarray(first, i)].map((b) => b.toString(16).padStart(2, "0")).join("");
    }
    return out;
  }

  #save(save: string, at: bigint, ret: number): void {
    const [name = "", offset] = save.split("@");
    if (offset === undefined) {
      this.#names.set(name, ret);
      return;
    }
    const b = new Uint8Array(4);
    this.#os.process.mm.memory.read(at + BigInt(offset), b);
    this.#names.set(name, new DataView(b.buffer).getUint32(0, true));
  }
}

function commandOf(text: string): number {
  if (text.startsWith("0")) return Number(text);
  const v = (u as unknown as Record<string, unknown>)[text];
  if (typeof v !== "number") throw new RangeError(`unknown ioctl ${text}`);
  return v;
}

/** Runs the program section by section, on the machine on which it was recorded or a variant of it. */
export function* interpret(
  lines: readonly string[],
  machine: MachineDescription = readMachine("oracle"),
): Generator<{ section: string; answers: Answer[] }> {
  const host = EmbeddedHost.boot(machine);
  for (let i = 0; i < lines.length; ) {
    const section = (lines[i++] as string).slice("section ".length);
    const runner = new Runner(host, section);
    const answers: Answer[] = [];
    for (; i < lines.length && !(lines[i] as string).startsWith("section "); i++) answers.push(runner.perform(lines[i] as string));
    runner.exit();
    yield { section, answers };
  }
}
