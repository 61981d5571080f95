/**
 * The knobs of fault injection: what debugfs and /proc let a user set.
 *
 * Each kind of point has its attributes. A thread whose fail-nth is not 0
 * counts down at every point that the kind's own filter lets through, of
 * whatever kind, and fails when it reaches 0; no attribute matters to it. For
 * everybody else a point fails with `probability` percent, once `space` is used
 * up, at every `interval`-th, `times` times (-1: without end), and with
 * `task-filter` only in a thread whose make-it-fail is set.
 *
 * The filters: failslab and fail_page_alloc leave alone what may wait for memory
 * while `ignore-gfp-wait` is set, which it is at first; fail_page_alloc also
 * leaves alone pages for user space (`ignore-gfp-highmem`) and less than
 * 2^`min-order` pages. There are no stack traces here to filter by, and no log
 * that could be flooded: the attributes for those are absent, or only kept.
 *
 * Source: lib/fault-inject.c (should_fail_ex), mm/failslab.c, mm/fail_page_alloc.c.
 */
import { Rng } from "../lib/rng.ts";
import type { FaultName, FaultPoint } from "./fault_inject.ts";
import type { Kernel } from "./kernel.ts";

/** A number or a flag that user space reads and writes, by its name in debugfs. */
export type Knob =
  | { readonly name: string; readonly kind: "ul" | "u32" | "s32"; get(): bigint; set(value: bigint): void }
  | { readonly name: string; readonly kind: "bool"; get(): boolean; set(value: boolean): void };

/** The attributes of one kind of point; see `struct fault_attr`. */
export class FaultAttr {
  readonly name: FaultName;
  /** Percent. */
  probability = 0n;
  interval = 1n;
  /** Failures still to come, -1 for no end. */
  times = 1;
  /** Bytes (pages, copies) that are let through first. */
  space = 0;
  /** 0: silent; 1: a line in the log; more: Linux adds a stack trace. */
  verbose = 2n;
  taskFilter = false;
  ratelimitInterval = 0;
  ratelimitBurst = 10;
  #count = 0n;

  constructor(name: FaultName) {
    this.name = name;
  }

  /** Whether a point fails for a thread without fail-nth. `percent`: a number below 100 by chance. */
  decide(size: number, makeItFail: boolean, percent: () => number): boolean {
    if (this.probability === 0n || (this.taskFilter && !makeItFail) || this.times === 0) return false;
    if (this.space > size) {
      this.space -= size;
      return false;
    }
    if (this.interval > 1n && ++this.#count % this.interval !== 0n) return false;
    return this.probability > BigInt(percent());
  }

  /** A failure happened, for whatever reason. */
  failed(): void {
    if (this.times > 0) this.times--;
  }

  /** In the order in which Linux makes the files. */
  knobs(changed: () => void): Knob[] {
    const set = <T>(store: (v: T) => void) => {
      return (v: T): void => {
        store(v);
        changed();
      };
    };
    return [
      { name: "probability", kind: "ul", get: () => this.probability, set: set((v) => (this.probability = v)) },
      { name: "interval", kind: "ul", get: () => this.interval, set: set((v) => (this.interval = v)) },
      { name: "times", kind: "s32", get: () => BigInt(this.times), set: set((v) => (this.times = Number(v))) },
      { name: "space", kind: "s32", get: () => BigInt(this.space), set: set((v) => (this.space = Number(v))) },
      { name: "verbose", kind: "ul", get: () => this.verbose, set: set((v) => (this.verbose = v)) },
      {
        name: "verbose_ratelimit_interval_ms",
        kind: "u32",
        get: () => BigInt(this.ratelimitInterval),
        set: set((v) => (this.ratelimitInterval = Number(v))),
      },
      {
        name: "verbose_ratelimit_burst",
        kind: "u32",
        get: () => BigInt(this.ratelimitBurst),
        set: set((v) => (this.ratelimitBurst = Number(v))),
      },
      { name: "task-filter", kind: "bool", get: () => this.taskFilter, set: set((v) => (this.taskFilter = v)) },
    ];
  }
}

/** What a filter of a kind holds besides its attributes. */
interface GfpFilter {
  ignoreWait: boolean;
  ignoreHighmem: boolean;
  minOrder: number;
  /** Only caches that are marked; none is. */
  cacheFilter: boolean;
}

/** One seed: the core has no randomness, and a run replays. */
const SEED = 1;

export class FaultKnobs {
  readonly failslab: FaultAttr = new FaultAttr("failslab");
  readonly failPageAlloc: FaultAttr = new FaultAttr("fail_page_alloc");
  readonly failUsercopy: FaultAttr = new FaultAttr("fail_usercopy");
  readonly failIommufd: FaultAttr = new FaultAttr("fail_iommufd");
  readonly slabFilter: GfpFilter = { ignoreWait: true, ignoreHighmem: false, minOrder: 0, cacheFilter: false };
  readonly pageFilter: GfpFilter = { ignoreWait: true, ignoreHighmem: true, minOrder: 1, cacheFilter: false };
  readonly #kernel: Kernel;
  readonly #changed: () => void;
  readonly #rng: Rng = new Rng(SEED);
  readonly #attrs: ReadonlyMap<FaultName, FaultAttr>;
  /** Some thread may have a fail-nth. */
  #nth = false;

  /** `changed`: what is armed may be another now. */
  constructor(kernel: Kernel, changed: () => void) {
    this.#kernel = kernel;
    this.#changed = changed;
    this.#attrs = new Map([this.failslab, this.failPageAlloc, this.failUsercopy, this.failIommufd].map((a) => [a.name, a]));
  }

  /** Something could fail. */
  get armed(): boolean {
    if (this.#nth) return true;
    for (const a of this.#attrs.values()) if (a.probability > 0n) return true;
    return false;
  }

  /** A thread's fail-nth was set to `n`. */
  armNth(n: number): void {
    if (n === 0 || this.#nth) return;
    this.#nth = true;
    this.#changed();
  }

  shouldFail(point: FaultPoint): boolean {
    const attr = this.#attrs.get(point.name);
    if (attr === undefined || this.#filtered(point)) return false;
    const task = this.#kernel.sched.currentOrNone;
    if (task !== undefined && task.failNth > 0) {
      task.failNth--;
      if (task.failNth > 0) return false;
    } else if (!attr.decide(point.size, task?.makeItFail === true, () => this.#rng.below(100))) {
      return false;
    }
    if (attr.verbose > 0n) this.#report(attr);
    attr.failed();
    return true;
  }

  #filtered(point: FaultPoint): boolean {
    const f = point.name === "failslab" ? this.slabFilter : point.name === "fail_page_alloc" ? this.pageFilter : undefined;
    if (f === undefined) return false;
    if (point.name === "fail_page_alloc" && point.size < 2 ** f.minOrder) return true;
    return f.cacheFilter || (f.ignoreHighmem && point.highmem) || (f.ignoreWait && point.mayWait);
  }

  #report(a: FaultAttr): void {
    this.#kernel.printk(
      `FAULT_INJECTION: forcing a failure.\nname ${a.name}, interval ${a.interval}, probability ${a.probability}, space ${a.space}, times ${a.times}`,
    );
  }

  /** The directories of debugfs and what is in them. */
  directories(): { readonly name: FaultName; readonly knobs: readonly Knob[] }[] {
    const flag = (name: string, filter: GfpFilter, key: "ignoreWait" | "ignoreHighmem" | "cacheFilter"): Knob => ({
      name,
      kind: "bool",
      get: () => filter[key],
      set: (v) => {
        filter[key] = v;
      },
    });
    const { pageFilter } = this;
    const extra: Partial<Record<FaultName, readonly Knob[]>> = {
      failslab: [flag("ignore-gfp-wait", this.slabFilter, "ignoreWait"), flag("cache-filter", this.slabFilter, "cacheFilter")],
      fail_page_alloc: [
        flag("ignore-gfp-wait", pageFilter, "ignoreWait"),
        flag("ignore-gfp-highmem", pageFilter, "ignoreHighmem"),
        {
          name: "min-order",
          kind: "u32",
          get: () => BigInt(pageFilter.minOrder),
          set: (v) => {
            pageFilter.minOrder = Number(v);
          },
        },
      ],
    };
    return [...this.#attrs.values()].map((a) => ({ name: a.name, knobs: [...a.knobs(this.#changed), ...(extra[a.name] ?? [])] }));
  }
}
