/**
 * Random sequences over every exporter and importer of the negotiated
 * interconnect, held against a model.
 *
 * A sequence makes one buffer, lets importers come and go, has its memory taken
 * and given back, and reads and writes through whoever holds it, all with real
 * DMA. The model is an array of bytes, a flag "taken", and what each importer
 * must still be able to do. Checked: every answer against the model; that while
 * the memory is taken nobody's write arrives and nobody reads it, and that no
 * table leads to it, whether or not it would answer (I1, I2); that
 * tables, trackers and attributes agree after every step (I3, I7); that a take
 * ends within its bound of virtual time (I5); that the buffer is live exactly
 * while its memory can be reached (I6); that nothing is left at the end (I4).
 */

import type { PhysVec } from "../../src/kernel/dma_buf/mapping.ts";
import { DRAIN_LIMIT_NS } from "../../src/kernel/dma_buf/negotiated/revoke.ts";
import { ledgerOf } from "../../src/kernel/iommu/ledger.ts";
import { checkInvariants } from "../../src/kernel/iommufd/check.ts";
import { EFAULT, ENODEV, EOPNOTSUPP, Errno } from "../../src/lib/errno.ts";
import { Rng } from "../../src/lib/rng.ts";
import { BYTES, EXPORTERS, type Exported, type ExporterName, IMPORTERS, type Imported, type ImporterName, PairScene } from "./scene.ts";

/** A sequence that went wrong, with what to run it again by. */
export class SequenceFailed extends Error {
  readonly seed: number;

  constructor(seed: number, log: readonly string[], problem: string) {
    super(`sequence ${seed}: ${problem}\n${log.map((l) => `  ${l}`).join("\n")}`);
    this.name = "SequenceFailed";
    this.seed = seed;
  }
}

/** What the model knows of one import. */
interface Holder {
  readonly name: ImporterName;
  readonly it: Imported;
  /** Its mapping was taken from it for good. */
  dead: boolean;
}

/** Importers whose mapping does not come back after a revoke. */
const staysDead = (name: ImporterName, restores: boolean): boolean =>
  name === "rdma pinned, revocable" || (name === "iommufd" && !restores);

class Sequence {
  readonly #scene: PairScene;
  readonly #rng: Rng;
  readonly #name: ExporterName;
  readonly #buffer: Exported;
  readonly #bytes: Map<bigint, number> = new Map();
  readonly #holders: Holder[] = [];
  readonly log: string[] = [];
  #taken = false;
  /** Memory that nothing may lead to now. */
  #gone: readonly PhysVec[] = [];
  /** Did iommufd's IOAS ask for its mappings back, when they were made? */
  readonly #restores: boolean;

  constructor(scene: PairScene, rng: Rng) {
    this.#scene = scene;
    this.#rng = rng;
    this.#name = EXPORTERS[rng.below(EXPORTERS.length)] as ExporterName;
    this.#restores = rng.below(2) === 1;
    scene.ioas.restoreMappings(this.#restores);
    this.#buffer = scene.export(this.#name);
    this.log.push(`${this.#name}, iommufd ${this.#restores ? "restores" : "does not restore"}`);
  }

  run(): void {
    const steps = 2 + this.#rng.below(8);
    for (let i = 0; i < steps; i++) {
      this.#step();
      checkInvariants(this.#scene.host.kernel);
      this.#checkState();
    }
    for (const h of [...this.#holders]) this.#leave(h);
    if (this.#taken) this.#give();
    this.#buffer.fd.close();
  }

  #pick<T>(list: readonly T[]): T {
    return list[this.#rng.below(list.length)] as T;
  }

  #step(): void {
    const n = this.#rng.below(10);
    if (n < 3 || this.#holders.length === 0) this.#import();
    else if (n < 5) this.#read(this.#pick(this.#holders));
    else if (n < 7) this.#write(this.#pick(this.#holders));
    else if (n < 8) this.#leave(this.#pick(this.#holders));
    else if (this.#taken) this.#give();
    else this.#take();
  }

  #import(): void {
    const name = this.#pick(IMPORTERS);
    const r = this.#scene.import(name, this.#buffer);
    const want = this.#refusal(name);
    this.log.push(`${name} imports: ${r instanceof Errno ? r.name : "ok"}`);
    if (r instanceof Errno || want !== undefined) {
      const got = r instanceof Errno ? r : undefined;
      if (got !== want && !this.#pinFails(name, got)) this.#fail(`${want?.name ?? "an import"} was to be expected`);
      if (!(r instanceof Errno)) r.leave();
      return;
    }
    this.#holders.push({ name, it: r, dead: false });
  }

  #refusal(name: ImporterName): Errno | undefined {
    if (this.#name.startsWith("vfio") && name === "rdma pinned") return EOPNOTSUPP;
    const mapsAtOnce = name === "iommufd" || name === "rdma pinned" || name === "rdma pinned, revocable";
    return this.#taken && mapsAtOnce ? ENODEV : undefined;
  }

  /** An importer that never lets go needs VRAM to move, which it cannot while others use it there. */
  #pinFails(name: ImporterName, got: Errno | undefined): boolean {
    return this.#name === "vram" && name === "rdma pinned" && got?.name === "EBUSY" && this.#holders.length > 0;
  }

  #read(h: Holder): void {
    const at = BigInt(this.#rng.below(Number(BYTES)));
    const got = h.it.read(at);
    this.log.push(`${h.name} reads at ${at}: ${got instanceof Errno ? got.name : got}`);
    if (this.#reaches(h)) {
      if (got !== (this.#bytes.get(at) ?? 0)) this.#fail(`${this.#bytes.get(at) ?? 0} was to be expected`);
    } else if (!this.#refuses(got)) this.#fail("the memory was reached while nobody may");
  }

  #write(h: Holder): void {
    const at = BigInt(this.#rng.below(Number(BYTES)));
    const value = 1 + this.#rng.below(255);
    const got = h.it.write(at, value);
    this.log.push(`${h.name} writes ${value} at ${at}: ${got?.name ?? "ok"}`);
    if (this.#reaches(h)) {
      if (got !== undefined) this.#fail("the write was to arrive");
      this.#bytes.set(at, value);
    } else if (!this.#refuses(got)) this.#fail("the memory was reached while nobody may");
  }

  #reaches = (h: Holder): boolean => !this.#taken && !h.dead;

  #refuses = (got: unknown): boolean => got === ENODEV || got === EFAULT;

  #leave(h: Holder): void {
    this.log.push(`${h.name} leaves`);
    this.#holders.splice(this.#holders.indexOf(h), 1);
    h.it.leave();
  }

  #take(): void {
    const { take, give } = this.#buffer;
    if (take === undefined || give === undefined) return;
    const { sched } = this.#scene.host.kernel;
    const before = sched.now;
    this.log.push("the memory is taken");
    const pinned = this.#holders.some((h) => h.name === "rdma pinned");
    const was = this.#buffer.where?.() ?? [];
    take();
    if (sched.now - before > DRAIN_LIMIT_NS) this.#fail(`the revoke took ${sched.now - before} ns`);
    if (pinned && this.#name === "vram") return;
    // A move of VRAM gives the memory back at once, in another place.
    this.#taken = this.#name !== "vram";
    this.#gone = was;
    this.#checkGone();
    if (!this.#taken) this.#gone = [];
    for (const h of this.#holders) if (staysDead(h.name, this.#restores)) h.dead = true;
  }

  /** No table of the kernel's and none of an importer's leads to memory that was taken (I1). */
  #checkGone(): void {
    const inGone = (pa: bigint): boolean => this.#gone.some((r) => pa >= r.paddr && pa < r.paddr + r.len);
    for (const [domain, e] of ledgerOf(this.#scene.host.kernel) ?? []) {
      if (inGone(e.pa)) this.#fail(`domain ${domain} maps the memory that was taken (I1)`);
    }
    for (const h of this.#holders) {
      const pa = h.it.seen?.();
      if (pa !== undefined && inGone(pa)) this.#fail(`${h.name} looks at the memory that was taken (I1)`);
    }
  }

  #give(): void {
    this.log.push("the memory is given back");
    this.#taken = false;
    this.#gone = [];
    this.#buffer.give?.();
  }

  /** The buffer is live exactly while its memory can be reached (I6). */
  #checkState(): void {
    this.#checkGone();
    const { state } = this.#buffer.fd.state();
    if ((state === "live") === this.#taken) this.#fail(`the buffer is ${state}`);
  }

  #fail(problem: string): never {
    throw new Error(problem);
  }
}

/** Sequences on one machine, which is as it was after each of them. */
const PER_MACHINE = 500;

/** Runs `count` sequences from `seed` on; `progress` is told of each machine. Throws `SequenceFailed`. */
export function randomSequences(seed: number, count: number, progress: (done: number) => void = () => {}): void {
  for (let done = 0; done < count; ) {
    const scene = new PairScene();
    const n = Math.min(PER_MACHINE, count - done);
    const before = leftOf(scene);
    for (let i = 0; i < n; i++) one(scene, seed + done + i, before);
    const left = Object.entries(scene.end());
    if (left.length > 0) throw new SequenceFailed(seed + done, [], `${n} sequences leave ${left.map(([k, v]) => `${v} ${k}`).join(", ")}`);
    done += n;
    progress(done);
  }
}

const leftOf = ({ host }: PairScene): string =>
  JSON.stringify([...host.kernel.leakChecks].map(([k, v]) => [k, v()]).filter(([, n]) => n !== 0));

function one(scene: PairScene, seed: number, before: string): void {
  const sequence = new Sequence(scene, new Rng(seed));
  try {
    sequence.run();
    scene.host.kernel.sched.settle();
    const after = leftOf(scene);
    if (after !== before) throw new Error(`something is left: ${before} before, ${after} after`);
  } catch (e) {
    throw new SequenceFailed(seed, sequence.log, e instanceof Error ? e.message : String(e));
  }
}
