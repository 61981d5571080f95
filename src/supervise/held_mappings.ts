/**
 * Mappings that a driver counts: pages of a virtual IOMMU, which cannot be
 * destroyed while the program maps them.
 *
 * The real kernel maps, copies at a fork, and unmaps, and tells nobody. So the
 * driver is told of one mapping for each place in a file, however many there
 * are, and of its end when it asks for it to matter: before a call that destroys
 * an object of the file we look where the program still maps that place. A
 * mapping is made after the call that asked for it was checked; until its
 * thread is seen again it counts as there.
 *
 * Known processes are looked at, and their descendants, which may not have
 * called yet.
 */
import { readChildren, readMaps, readStat } from "../host/proc.ts";
import type { File } from "../kernel/fs/file.ts";
import type { Vma } from "../kernel/mm/vma.ts";
import { IOMMU_DESTROY } from "../uapi/iommufd.ts";
import { heldIdOf } from "./device_mappings.ts";
import { SYS_ioctl } from "./numbers.ts";
import type { Supervisor, TrappedCall } from "./types.ts";

interface HeldMapping {
  /** What the driver counts. */
  readonly vma: Vma;
  /** The thread whose mmap may still be under way. */
  tid: number | undefined;
}

/** What is needed of the supervisor. */
export type MappingHost = Pick<Supervisor, "files" | "processes">;

export class HeldMappings {
  readonly #host: MappingHost;
  readonly #held: Map<File, HeldMapping[]> = new Map();

  constructor(host: MappingHost) {
    this.#host = host;
  }

  /** Places that are mapped, or about to be. */
  get count(): number {
    let n = 0;
    for (const mappings of this.#held.values()) n += mappings.length;
    return n;
  }

  /** `tid` is about to map what `file`'s driver has agreed to as `vma`, which this takes over. */
  hold(tid: number, file: File, vma: Vma): void {
    const mappings = this.#held.get(file) ?? this.#begin(file);
    const known = mappings.find((m) => m.vma.offset === vma.offset);
    if (known === undefined) {
      mappings.push({ vma, tid });
      return;
    }
    known.tid = tid;
    vma.ops?.close?.(vma);
  }

  /** A call is about to be served. */
  beforeCall(call: TrappedCall): void {
    if (this.#held.size === 0) return;
    for (const mappings of this.#held.values()) for (const m of mappings) if (m.tid === call.tid) m.tid = undefined;
    if (call.nr !== SYS_ioctl || call.int(1) !== IOMMU_DESTROY) return;
    const file = call.fd(call.int(0));
    const mappings = file === undefined ? undefined : this.#held.get(file);
    if (file === undefined || mappings === undefined) return;
    const left = mappings.filter((m) => this.#there(file, m));
    for (const m of mappings) if (!left.includes(m)) m.vma.ops?.close?.(m.vma);
    this.#held.set(file, left);
  }

  #begin(file: File): HeldMapping[] {
    const mappings: HeldMapping[] = [];
    this.#held.set(file, mappings);
    this.#host.files.onLastClose(file, () => {
      for (const m of this.#held.get(file) ?? []) m.vma.ops?.close?.(m.vma);
      this.#held.delete(file);
    });
    return mappings;
  }

  #there(file: File, m: HeldMapping): boolean {
    if (m.tid !== undefined && readStat(m.tid) !== undefined) return true;
    const start = m.vma.offset;
    const end = start + m.vma.length;
    const seen = new Set<number>();
    const todo = [...this.#host.processes].map((p) => p.target.pid);
    for (let pid = todo.pop(); pid !== undefined; pid = todo.pop()) {
      if (seen.has(pid)) continue;
      seen.add(pid);
      for (const map of readMaps(pid) ?? []) {
        const id = heldIdOf(map);
        if (id === undefined || this.#host.files.byId(id) !== file) continue;
        if (map.offset < end && map.offset + (map.end - map.start) > start) return true;
      }
      todo.push(...(readChildren(pid) ?? []));
    }
    return false;
  }
}
