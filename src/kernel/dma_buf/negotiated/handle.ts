/**
 * A mapping in an importer's hands: one per acquire, typed as agreed.
 *
 * What an importer can do with it depends on its type, and an address is to be
 * seen only where the type is about addresses. `sever` is the core's way to
 * take a mapping from an importer that does not give it back: possible where
 * the core itself made the translation that the importer uses.
 *
 * Source: this design; docs/negotiation.md.
 */
import type { NegotiatedAttachment } from "./attachment.ts";
import type { Epoch } from "./buffer.ts";
import type { PhysRange } from "./contract.ts";

/** What every handle knows. */
export interface HandleInit {
  readonly att: NegotiatedAttachment;
  readonly epoch: Epoch;
  /** It may be written through. */
  readonly write: boolean;
}

export abstract class MappingHandle {
  readonly att: NegotiatedAttachment;
  readonly epoch: Epoch;
  readonly write: boolean;
  /** The core has taken it away; releasing it is still the importer's duty. RESV. */
  severed = false;
  /** Not given back, and out of the core's reach; RESV. */
  fenced = false;

  constructor({ att, epoch, write }: HandleInit) {
    this.att = att;
    this.epoch = epoch;
    this.write = write;
  }

  /** Takes the translation away, and keeps its addresses taken; false when there is none to take. RESV held. */
  abstract sever(): boolean;

  /** Undoes what the core set up for it. RESV held. */
  abstract end(): void;
}

/** Physical ranges, for an importer that keeps page tables of its own. */
export class PhysHandle extends MappingHandle {
  readonly ranges: readonly PhysRange[];

  constructor(init: HandleInit, ranges: readonly PhysRange[]) {
    super(init);
    this.ranges = ranges;
  }

  sever(): boolean {
    return false;
  }

  end(): void {}
}

/** What two drivers of one family share; the core knows nothing of it. */
export class PrivateHandle extends MappingHandle {
  readonly object: object;

  constructor(init: HandleInit, object: object) {
    super(init);
    this.object = object;
  }

  sever(): boolean {
    return false;
  }

  end(): void {}
}
