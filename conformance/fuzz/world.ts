/**
 * What the generator knows of the machine while it makes up a sequence: which
 * slots hold an open context, an address space, a device. Each call is made on
 * the embedded kernel as soon as it is made up, and only what succeeded is
 * known: so sequences reach deep, and a seed is the same sequence as long as the
 * kernel answers the same.
 *
 * Of a context it is fixed at the start which devices may come in:
 *
 *   mock    the selftest's
 *   real    those of VFIO
 *   mixed   both, on the same address spaces
 *
 * Calls that spoil a real Linux for those that come after are never made:
 *
 * - In a mixed context no device's page table is replaced: Linux takes that of
 *   another IOMMU driver, and crashes. So a real device is attached there once.
 * - The selftest's operations on bound devices that do not look whether the
 *   device is a mock (DEV_CHECK_CACHE, TRIGGER_VEVENT) are asked of pure mock contexts.
 * - MAP_FILE gets no descriptor that holds a context (iommufd, a VFIO device, an
 *   access, a queue): without a page table Linux keeps any file, and the cycle is
 *   never freed.
 * - The type1 call MAP_DMA on an iommufd asks for some access: without any,
 *   Linux warns of a bug of its own (map_range in generic_pt/iommu_pt.h) once a
 *   page table is there.
 * - A mock device goes only after its PASIDs are detached: Linux's test module
 *   leaves that to the caller.
 */
import type { Rng } from "../../src/lib/rng.ts";
import type { Call, Fd } from "./program.ts";

export interface Ref {
  readonly slot: number;
}

export type Kind = "mock" | "real" | "mixed";

export interface Area {
  readonly iova: bigint | Ref;
  readonly length: bigint;
  /** The program's memory behind it. */
  readonly va?: bigint;
}

export interface Ioas {
  readonly ref: Ref;
  readonly areas: Area[];
  /** A device was attached to it, so what the kernel chooses suits devices. */
  attached: boolean;
  /** Each page has an entry of its own, so that what is dirty does not depend on which pages are neighbours in memory. */
  small: boolean;
}

export interface Hwpt {
  readonly ref: Ref;
  readonly ioas: Ioas;
  readonly nested: boolean;
  readonly nestParent: boolean;
  readonly dirty: boolean;
  readonly pasid: boolean;
  readonly faults: boolean;
  /** Dirty tracking is on. */
  tracking: boolean;
}

export interface Mock {
  readonly stdev: Ref;
  readonly idev: Ref;
  readonly dirty: boolean;
  readonly pasid: boolean;
  /** Those that an attach was ever tried with. */
  readonly pasids: Set<number>;
  hwpt: Ref;
}

export interface Device {
  readonly fd: Ref;
  readonly name: string;
  readonly devid: Ref;
  /** Attached once, in a mixed context. */
  attached: boolean;
}

export interface Access {
  readonly fd: Ref;
  readonly pins: boolean;
  readonly ioas: Ioas;
  /** Ids of what it has pinned. */
  readonly items: Ref[];
}

export interface Viommu {
  readonly ref: Ref;
  readonly hwpt: Hwpt;
  queues: number;
}

export interface Context {
  readonly fd: Ref;
  readonly kind: Kind;
  readonly ioases: Ioas[];
  readonly hwpts: Hwpt[];
  readonly mocks: Mock[];
  readonly devices: Device[];
  readonly accesses: Access[];
  readonly faults: { readonly id: Ref; readonly fd: Ref }[];
  readonly viommus: Viommu[];
  readonly vdevices: Ref[];
  readonly veventqs: { readonly id: Ref; readonly fd: Ref }[];
  readonly queues: Ref[];
}

/** A descriptor that holds no context. */
export interface OpenFile {
  readonly fd: Ref;
  readonly kind: "memfd" | "dmabuf" | "testbuf" | "event" | "null";
  /** Bytes. */
  readonly size: bigint;
}

export class World {
  readonly rng: Rng;
  readonly kind: Kind;
  /** Only files are mapped: what CHANGE_PROCESS asks for. */
  readonly filesOnly: boolean;
  /** Calls made. */
  made = 0;
  readonly contexts: Context[] = [];
  readonly files: OpenFile[] = [];
  /** Devices that were opened, by name: a second open of one is another kind of call. */
  readonly opened: Set<string> = new Set();
  readonly #perform: (c: Call) => string;
  #slots = 0;

  /** `perform` makes a call and gives its answer. */
  constructor(rng: Rng, kind: Kind, perform: (c: Call) => string) {
    this.rng = rng;
    this.kind = kind;
    this.filesOnly = rng.chance(0.08);
    this.#perform = perform;
  }

  slot(): Ref {
    return { slot: this.#slots++ };
  }

  /** Slots given out. */
  get slots(): number {
    return this.#slots;
  }

  /** Makes the call; true when it succeeded. */
  push(c: Call): boolean {
    this.made++;
    return !this.#perform(c).startsWith("E");
  }

  chance(p: number): boolean {
    return this.rng.chance(p);
  }

  pick<T>(items: readonly T[]): T {
    return this.rng.pick(items);
  }

  /** Undefined when there is none. */
  some<T>(items: readonly T[]): T | undefined {
    return items.length === 0 ? undefined : this.rng.pick(items);
  }

  /** Takes one at random out of the list. */
  take<T>(items: T[]): T | undefined {
    return items.length === 0 ? undefined : items.splice(this.rng.below(items.length), 1)[0];
  }

  /** Every id that the context is believed to have. */
  ids(c: Context): Ref[] {
    return [
      ...c.ioases.map((x) => x.ref),
      ...c.hwpts.map((x) => x.ref),
      ...c.mocks.flatMap((x) => [x.stdev, x.idev, x.hwpt]),
      ...c.devices.map((x) => x.devid),
      ...c.faults.map((x) => x.id),
      ...c.viommus.map((x) => x.ref),
      ...c.vdevices,
      ...c.veventqs.map((x) => x.id),
      ...c.queues,
    ];
  }

  /** A descriptor that no call of the kind wants, and that holds no context. */
  wrongFd(): Fd {
    const f = this.some(this.files);
    return f !== undefined && this.chance(0.5) ? f.fd : this.pick([-1, 200, -2147483648, 1023]);
  }
}
