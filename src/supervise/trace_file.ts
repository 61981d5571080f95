/**
 * `--trace FILE`: what the embedded kernel does, as JSON that Perfetto opens.
 *
 * Entries are written as they come, so that a run that is cut short leaves a
 * trace up to that moment: the closing bracket of the array is optional in the
 * format. A served call is a slice on its thread's track; the events it causes
 * lie inside.
 */
import { closeSync, openSync, writeSync } from "node:fs";
import type { Kernel } from "../kernel/kernel.ts";
import type { Errno } from "../lib/errno.ts";
import { type PerfettoEvent, PerfettoWriter } from "../trace/index.ts";
import { describeIoctl, ioctlName } from "../uapi/index.ts";
import * as sys from "./numbers.ts";
import { syscallName } from "./syscall_names.ts";
import type { CallObserver, TrappedCall } from "./types.ts";

/** Written at once when so many bytes have come together. */
const BUFFER = 64 * 1024;

export class TraceFile implements CallObserver {
  readonly #fd: number;
  readonly #kernel: Kernel;
  readonly #writer: PerfettoWriter;
  readonly #stop: () => void;
  #text = "";
  #first = true;

  /** Throws what open(2) says when the file cannot be made. */
  constructor(kernel: Kernel, path: string) {
    this.#kernel = kernel;
    this.#fd = openSync(path, "w", 0o644);
    this.#text = "[\n";
    this.#writer = new PerfettoWriter((e) => this.#put(e));
    this.#stop = kernel.trace.listen((r) => this.#writer.write(r));
  }

  begin(call: TrappedCall): void {
    this.#writer.begin(track(call), nameOf(call), this.#kernel.sched.now, { pid: call.pid, tid: call.tid });
  }

  end(call: TrappedCall, result: bigint | undefined, error: Errno | undefined): void {
    const args = error === undefined ? { result } : { errno: error.name };
    this.#writer.end(track(call), nameOf(call), this.#kernel.sched.now, args);
  }

  finish(): void {
    this.#stop();
    this.#text += "\n]\n";
    this.#flush();
    closeSync(this.#fd);
  }

  #put(event: PerfettoEvent): void {
    this.#text += `${this.#first ? "" : ",\n"}${JSON.stringify(event)}`;
    this.#first = false;
    if (this.#text.length >= BUFFER) this.#flush();
  }

  #flush(): void {
    writeSync(this.#fd, this.#text);
    this.#text = "";
  }
}

/** The events of a call carry its thread's name: the same track. */
const track = (call: TrappedCall): string => call.process.kernel.sched.currentOrNone?.name ?? `${call.process.name}/${call.tid}`;

function nameOf(call: TrappedCall): string {
  if (call.nr !== sys.SYS_ioctl) return syscallName(call.nr);
  const cmd = call.int(1) >>> 0;
  return describeIoctl(cmd)?.name ?? ioctlName(cmd);
}
