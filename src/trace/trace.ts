/**
 * Where events go. With no listener an event costs the test of one field:
 * a caller writes `if (trace.on) trace.emit({ … })`, so that not even the
 * object is made.
 */
import type { TraceEvent } from "./events.ts";

/** An event with its place in the run. */
export interface TraceRecord {
  /** Count of events since boot, from 0. */
  readonly seq: number;
  /** Virtual time, ns. */
  readonly time: number;
  /** Name of the task that did it; "" outside of one. */
  readonly task: string;
  readonly event: TraceEvent;
}

export type TraceListener = (record: TraceRecord) => void;

/** What stamps a record; the kernel gives its scheduler's. */
export interface TraceClock {
  readonly now: number;
  readonly taskName: string;
  /** The first listener came (true) or the last one left (false). */
  listening?(on: boolean): void;
}

export class Trace {
  /** True while somebody listens. */
  on = false;
  readonly #listeners: Set<TraceListener> = new Set();
  readonly #clock: TraceClock;
  #seq = 0;

  constructor(clock: TraceClock) {
    this.#clock = clock;
  }

  /** Hears every event from now on; call what it returns to stop. */
  listen(listener: TraceListener): () => void {
    this.#listeners.add(listener);
    this.#update();
    return () => {
      this.#listeners.delete(listener);
      this.#update();
    };
  }

  #update(): void {
    const on = this.#listeners.size > 0;
    if (on === this.on) return;
    this.on = on;
    this.#clock.listening?.(on);
  }

  emit(event: TraceEvent): void {
    const record: TraceRecord = { seq: this.#seq++, time: this.#clock.now, task: this.#clock.taskName, event };
    for (const l of this.#listeners) l(record);
  }
}
