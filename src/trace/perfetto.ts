/**
 * A trace as the JSON that Perfetto and chrome://tracing open.
 *
 * Each task is a thread of one process, "barlink". Served calls and held locks
 * are slices, everything else is an instant with its fields as arguments.
 * Timestamps are microseconds of virtual time; events of one instant keep their
 * order by a fraction of a microsecond each, so that slices nest as they did.
 *
 * Source: the Trace Event Format (phases B, E, i, M).
 */
import type { TraceRecord } from "./trace.ts";

/** One entry of `traceEvents`. */
export interface PerfettoEvent {
  readonly name: string;
  readonly cat: string;
  readonly ph: "B" | "E" | "i" | "M";
  /** Microseconds. */
  readonly ts: number;
  readonly pid: number;
  readonly tid: number;
  /** Scope of an instant: its thread. */
  readonly s?: "t";
  readonly args?: Readonly<Record<string, unknown>>;
}

const PID = 1;
/** Apart enough to order the events of one instant, close enough not to be seen. */
const TICK = 0.001;
/** What no task did. */
const NO_TASK = "kernel";

export class PerfettoWriter {
  readonly #emit: (event: PerfettoEvent) => void;
  readonly #threads: Map<string, number> = new Map();
  #last = -1;

  /** `emit` gets each entry as it comes: collect them, or write them out one by one. */
  constructor(emit: (event: PerfettoEvent) => void) {
    this.#emit = emit;
    emit({ name: "process_name", cat: "__metadata", ph: "M", ts: 0, pid: PID, tid: 0, args: { name: "barlink" } });
  }

  /** Gives a record its place; records come in order. */
  write(record: TraceRecord): void {
    const { event, task } = record;
    const tid = this.#thread(task === "" ? NO_TASK : task);
    const ts = this.#stamp(record.time);
    switch (event.type) {
      case "sched.lock":
        this.#emit({ name: event.lock, cat: "lock", ph: "B", ts, pid: PID, tid, args: { mode: event.mode } });
        break;
      case "sched.unlock":
        this.#emit({ name: event.lock, cat: "lock", ph: "E", ts, pid: PID, tid });
        break;
      default:
        this.#emit({
          name: event.type,
          cat: event.type.slice(0, event.type.indexOf(".")),
          ph: "i",
          ts,
          pid: PID,
          tid,
          s: "t",
          args: argsOf(event),
        });
    }
  }

  /** Begins a slice on a task's track that `end` closes: a served call. */
  begin(task: string, name: string, time: number, args: Readonly<Record<string, unknown>> = {}): void {
    this.#emit({ name, cat: "call", ph: "B", ts: this.#stamp(time), pid: PID, tid: this.#thread(task), args: plain(args) });
  }

  end(task: string, name: string, time: number, args: Readonly<Record<string, unknown>> = {}): void {
    this.#emit({ name, cat: "call", ph: "E", ts: this.#stamp(time), pid: PID, tid: this.#thread(task), args: plain(args) });
  }

  #thread(name: string): number {
    let tid = this.#threads.get(name);
    if (tid === undefined) {
      tid = this.#threads.size + 1;
      this.#threads.set(name, tid);
      this.#emit({ name: "thread_name", cat: "__metadata", ph: "M", ts: 0, pid: PID, tid, args: { name } });
    }
    return tid;
  }

  #stamp(ns: number): number {
    this.#last = Math.max(ns / 1000, this.#last + TICK);
    return this.#last;
  }
}

function argsOf(event: object): Record<string, unknown> {
  const { type: _, ...fields } = event as { type: string } & Record<string, unknown>;
  return plain(fields);
}

/** JSON has no bigint: addresses become hexadecimal text. */
function plain(fields: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const out: Record<string, unknown> = {};
  for (const [k, v] of Object.entries(fields)) if (v !== undefined) out[k] = typeof v === "bigint" ? `0x${v.toString(16)}` : v;
  return out;
}
