/** The program's memory and plain files, which change under what is mapped for devices. */
import * as u from "../../src/uapi/index.ts";
import { DATA, DATA_PAGES, SHARED } from "./program.ts";
import { P } from "./values.ts";
import type { World } from "./world.ts";

const RW = BigInt(u.PROT_READ | u.PROT_WRITE);

function part(w: World): { at: bigint; bytes: bigint } {
  const first = w.rng.below(DATA_PAGES);
  return { at: DATA + BigInt(first) * P, bytes: BigInt(1 + w.rng.below(Math.min(4, DATA_PAGES - first))) * P };
}

export function fileOpen(w: World): boolean {
  if (w.files.length >= 8) return false;
  const fd = w.slot();
  switch (w.rng.below(8)) {
    case 0:
      if (w.push({ op: "eventfd", n: [], save: fd.slot })) w.files.push({ fd, kind: "event", size: P });
      return true;
    case 1:
      if (w.push({ op: "open", n: [2n], path: "/dev/null", save: fd.slot })) w.files.push({ fd, kind: "null", size: P });
      return true;
    default: {
      const size = BigInt(1 + w.rng.below(16)) * P;
      if (w.push({ op: "memfd", n: [BigInt(w.pick([0, 1, 2])), size], save: fd.slot })) w.files.push({ fd, kind: "memfd", size });
      return true;
    }
  }
}

export function memory(w: World): boolean {
  const { at, bytes } = part(w);
  switch (w.rng.below(8)) {
    case 0:
      w.push({ op: "munmap", n: [at, bytes] });
      // It comes back: other pages at the same addresses.
      if (w.chance(0.7)) w.push({ op: "mmap", fd: -1, n: [at, bytes, RW, BigInt(u.MAP_PRIVATE | u.MAP_ANONYMOUS | u.MAP_FIXED), 0n] });
      return false;
    case 1:
      return w.push({ op: "mmap", fd: -1, n: [at, bytes, RW, BigInt(u.MAP_PRIVATE | u.MAP_ANONYMOUS | u.MAP_FIXED), 0n] });
    case 2:
      return w.push({ op: "mprotect", n: [at, bytes, BigInt(w.pick([0, 1, 3, 3, 3]))] });
    case 3: {
      const f = w.some(w.files.filter((x) => x.kind === "memfd"));
      if (f === undefined) return fileOpen(w);
      const where = w.chance(0.5) ? SHARED + BigInt(w.rng.below(16)) * P : at;
      return w.push({
        op: "mmap",
        fd: f.fd,
        n: [
          where,
          P,
          RW,
          BigInt((w.chance(0.7) ? u.MAP_SHARED : u.MAP_PRIVATE) | u.MAP_FIXED),
          BigInt(w.rng.below(Number(f.size / P))) * P,
        ],
      });
    }
    case 4: {
      const f = w.some(w.files.filter((x) => x.kind === "memfd"));
      if (f === undefined) return fileOpen(w);
      return w.push({ op: "truncate", fd: f.fd, n: [w.pick([0n, P, f.size, f.size, 4n * P])] });
    }
    case 5:
      return w.push({ op: "poke", n: [at, bytes, BigInt(w.rng.below(256))] });
    default:
      return w.push({ op: "look", n: [w.chance(0.8) ? at : SHARED + BigInt(w.rng.below(16)) * P, bytes] });
  }
}

/** A second descriptor of a context, or of a buffer: it goes at once or stays to the end. */
export function duplicate(w: World): boolean {
  const f = w.some([...w.files, ...w.contexts]);
  if (f === undefined) return false;
  const again = w.slot();
  w.push({ op: "dup", fd: f.fd, n: [], save: again.slot });
  if (w.chance(0.7)) w.push({ op: "close", fd: again, n: [] });
  return true;
}

/** What pinning may cost, for a program that has no right to more. */
export function limits(w: World): boolean {
  w.push({ op: "drop", n: [BigInt(u.CAP_IPC_LOCK)] });
  if (w.chance(0.5)) w.push({ op: "drop", n: [BigInt(u.CAP_SYS_RESOURCE)] });
  return w.push({ op: "memlock", n: [BigInt(w.pick([0, 4, 16, 64, 256])) * P] });
}
