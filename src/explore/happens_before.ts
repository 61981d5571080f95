/**
 * Data races of one run, by vector clocks.
 *
 * Two accesses to one field race when at least one writes and nothing orders
 * them: no lock that one released and the other took, no event that one brought
 * and the other waited for, no birth. Whether they race is a matter of the trace
 * and not of its order, so one run of each trace is enough to see them all.
 *
 * A semaphore's readers are ordered after its writers and before the next, and
 * not among themselves. What tasks wait on (completions, wait queues, the clock)
 * orders everybody who touches it in the order of touching: that may hide a
 * race and makes none up.
 *
 * Source: Flanagan, Freund, "FastTrack: efficient and precise dynamic race
 * detection", PLDI 2009, with full clocks.
 */

type Clock = Map<number, number>;

interface LockClocks {
  readonly writers: Clock;
  readonly readers: Clock;
}

/** One access, as a race is told. */
export interface Access {
  readonly thread: number;
  readonly write: boolean;
  /** Names of the locks held. */
  readonly held: readonly string[];
}

interface Location {
  write: (Access & { readonly at: number }) | undefined;
  /** Since that write, the last of each thread. */
  readonly reads: Map<number, Access & { readonly at: number }>;
}

const joinInto = (into: Clock, from: Clock): void => {
  for (const [t, n] of from) if (n > (into.get(t) ?? 0)) into.set(t, n);
};

export class HappensBefore {
  readonly #threads: Map<number, Clock> = new Map();
  readonly #locks: Map<object, LockClocks> = new Map();
  readonly #events: Map<object, Clock> = new Map();
  readonly #locations: Map<string, Location> = new Map();

  #clock(thread: number): Clock {
    let c = this.#threads.get(thread);
    if (c === undefined) {
      c = new Map([[thread, 1]]);
      this.#threads.set(thread, c);
    }
    return c;
  }

  #lock(lock: object): LockClocks {
    let l = this.#locks.get(lock);
    if (l === undefined) {
      l = { writers: new Map(), readers: new Map() };
      this.#locks.set(lock, l);
    }
    return l;
  }

  acquired(thread: number, lock: object, mode: "write" | "read"): void {
    const c = this.#clock(thread);
    const l = this.#lock(lock);
    joinInto(c, l.writers);
    if (mode === "write") joinInto(c, l.readers);
  }

  released(thread: number, lock: object, mode: "write" | "read"): void {
    const l = this.#lock(lock);
    joinInto(mode === "write" ? l.writers : l.readers, this.#clock(thread));
    this.#tick(thread);
  }

  /** The thread used what tasks wait on. */
  met(thread: number, on: object): void {
    const c = this.#clock(thread);
    const e = this.#events.get(on);
    if (e === undefined) {
      this.#events.set(on, new Map(c));
    } else {
      joinInto(c, e);
      joinInto(e, c);
    }
    this.#tick(thread);
  }

  /** `by` woke or started `thread`. */
  woke(by: number, thread: number): void {
    joinInto(this.#clock(thread), this.#clock(by));
    this.#tick(by);
  }

  #tick(thread: number): void {
    const c = this.#clock(thread);
    c.set(thread, (c.get(thread) ?? 0) + 1);
  }

  /** Notes an access; the earlier one that it races with, if there is one. */
  access(location: string, access: Access): Access | undefined {
    const { thread, write } = access;
    const c = this.#clock(thread);
    let l = this.#locations.get(location);
    if (l === undefined) {
      l = { write: undefined, reads: new Map() };
      this.#locations.set(location, l);
    }
    const unordered = (a: (Access & { readonly at: number }) | undefined): boolean =>
      a !== undefined && a.thread !== thread && a.at > (c.get(a.thread) ?? 0);
    const noted = { ...access, at: c.get(thread) ?? 0 };
    let race = unordered(l.write) ? l.write : undefined;
    if (write) {
      race ??= [...l.reads.values()].find(unordered);
      l.write = noted;
      l.reads.clear();
    } else {
      l.reads.set(thread, noted);
    }
    return race;
  }
}
