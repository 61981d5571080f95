/**
 * A buffer under the negotiated contract: its state, its epochs, and who is
 * attached.
 *
 *            revoke(temporary)
 *     LIVE  ⇄  REVOKED            restore
 *       \        /
 *        v      v  revoke(permanent)
 *          DEAD
 *
 * Every mapping belongs to the epoch in which it was made. A revoke closes the
 * epoch and opens the next; it has drained when the closed one holds no mapping
 * any more. So a revoke is idempotent by construction: there is no count to be
 * armed again, and a mapping made after a restore can never be taken for one
 * that an earlier revoke waits for.
 *
 * What the reservation (RESV) guards: `state`, `epoch`, `attachments`, and the
 * decision "may this be mapped now". Nothing of the exporter's is locked inside
 * of it. The importer's page lock nests inside it.
 *
 * Invariants: a mapping is made only while LIVE; DEAD is never left; a buffer
 * is LIVE only while nothing of a closed epoch is left, fenced mappings included; the epoch's count is the number
 * of handles of that epoch that are neither released nor severed.
 *
 * Source: this design; docs/negotiation.md.
 */

import type { Errno } from "../../../lib/errno.ts";
import { bugOn, KernelBug } from "../../../lib/kernel_bug.ts";
import type { Sched } from "../../../sched/sched.ts";
import type { Step } from "../../../sched/task.ts";
import { Completion } from "../../../sched/wait.ts";
import type { DmaBuf } from "../buffer.ts";
import type { NegotiatedAttachment } from "./attachment.ts";
import { type BufferState, type ExporterOffer, type PhysRange, RevokeLevel } from "./contract.ts";

/** What an exporter implements. */
export interface NegotiatedExporter {
  /** What it can give for this buffer, best first. Asked once, at export. */
  offers(dmabuf: DmaBuf): readonly ExporterOffer[];
  /**
   * Where the memory is, for a mapping through `att`, until `unplace`: whatever
   * must be done first (pinning, moving into place) is done here, and nowhere
   * before. RESV held, the buffer is live.
   */
  place(dmabuf: DmaBuf, att: NegotiatedAttachment): Step<readonly PhysRange[] | Errno>;
  /** Undoes one `place`. RESV held. */
  unplace?(dmabuf: DmaBuf, att: NegotiatedAttachment): void;
  /** What the importer of a private type gets instead of ranges. RESV held, the buffer is live. */
  open?(dmabuf: DmaBuf, att: NegotiatedAttachment): Step<object | Errno>;
  /**
   * An importer did not let go, and nothing lies between it and the memory that
   * the core could close: make the memory unreachable, and keep its addresses
   * from being given to anybody else. RESV held; must not sleep.
   */
  fence?(dmabuf: DmaBuf, att: NegotiatedAttachment): void;
  /** The buffer's state has changed. RESV held. */
  stateChanged?(dmabuf: DmaBuf, state: BufferState): void;
  /** The last mapping of such an importer is gone; the buffer can be restored again. RESV held; must not sleep. */
  unfence?(dmabuf: DmaBuf): void;
}

/** The mappings made between two revokes. */
export class Epoch {
  readonly number: number;
  /** Completed once the epoch is closed and empty. */
  readonly drained: Completion;
  #users = 0;
  #closed = false;

  constructor(sched: Sched, number: number) {
    this.number = number;
    this.drained = new Completion(sched, "dma-buf epoch drained");
  }

  get users(): number {
    return this.#users;
  }

  enter(): void {
    bugOn(this.#closed, "a dma-buf mapping is made in an epoch that is over");
    this.#users++;
  }

  leave(): void {
    bugOn(this.#users === 0, "a dma-buf mapping is given back twice");
    this.#users--;
    if (this.#closed && this.#users === 0) this.drained.completeAll();
  }

  close(): void {
    this.#closed = true;
    if (this.#users === 0) this.drained.completeAll();
  }
}

export class NegotiatedBuffer {
  readonly dmabuf: DmaBuf;
  readonly exporter: NegotiatedExporter;
  /** What it can give, best first. */
  readonly offers: readonly ExporterOffer[];
  /** RESV. */
  epoch: Epoch;
  /** In order of attaching; RESV. */
  readonly attachments: NegotiatedAttachment[] = [];
  /** Mappings of importers that did not let go and could not be cut off; RESV. */
  fenced = 0;
  /** Counts the changes of `state`, for whoever polls. */
  changes = 0;
  /** `changes` when user space last asked. */
  seen = 0;
  #state: BufferState = "live";
  #closed: Epoch[] = [];

  constructor(dmabuf: DmaBuf, exporter: NegotiatedExporter) {
    this.dmabuf = dmabuf;
    this.exporter = exporter;
    this.epoch = new Epoch(dmabuf.kernel.sched, 0);
    this.offers = exporter.offers(dmabuf);
    for (const o of this.offers) {
      const cut = o.type === "iommu" || exporter.fence !== undefined;
      if (o.minLevel > RevokeLevel.none && !cut) throw new KernelBug(`${dmabuf.expName} revokes ${o.type} mappings and cannot fence them`);
    }
  }

  get state(): BufferState {
    return this.#state;
  }

  /** RESV held. */
  setState(state: BufferState): void {
    if (state === this.#state) return;
    bugOn(this.#state === "dead", "a dead dma-buf changes its state");
    bugOn(state === "live" && this.fenced > 0, "a dma-buf is restored while an importer is fenced");
    this.#state = state;
    this.changes++;
    this.exporter.stateChanged?.(this.dmabuf, state);
    const { kernel, ino, file } = this.dmabuf;
    if (kernel.trace.on) kernel.trace.emit({ type: "dma_buf.state", ino, state, epoch: this.epoch.number });
    file.pollQueue.wakeUp();
  }

  /** Ends the epoch. RESV held. */
  nextEpoch(): void {
    this.#closed.push(this.epoch);
    this.epoch.close();
    this.epoch = new Epoch(this.dmabuf.kernel.sched, this.epoch.number + 1);
  }

  /** Closed epochs in which somebody still has a mapping. RESV held. */
  draining(): readonly Epoch[] {
    this.#closed = this.#closed.filter((e) => e.users > 0);
    return this.#closed;
  }
}
