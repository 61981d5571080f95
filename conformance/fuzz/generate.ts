/**
 * Makes sequences of calls up, from a seed and the answers of the embedded
 * kernel. `world.ts` says what is known along the way, and what is never asked.
 */
import { Rng } from "../../src/lib/rng.ts";
import * as hwpt from "./hwpt_calls.ts";
import * as ioas from "./ioas_calls.ts";
import * as memory from "./memory_calls.ts";
import { type Call, SLOTS } from "./program.ts";
import * as scenes from "./scenes.ts";
import * as selftest from "./selftest_calls.ts";
import * as vfio from "./vfio_calls.ts";
import { type Context, type Kind, World } from "./world.ts";

/** Makes a call or several; false when there was nothing to make one of, or the only one failed. */
type Make = (w: World, c: Context) => boolean;
type Row = readonly [weight: number, make: Make];

const SPACES: readonly Row[] = [
  [3, ioas.ioasAlloc],
  [14, ioas.map],
  [10, ioas.mapFile],
  [8, ioas.copy],
  [12, ioas.unmap],
  [2, ioas.allowIovas],
  [2, ioas.iovaRanges],
  [2, ioas.option],
  [1, ioas.vfioIoas],
  [1, ioas.changeProcess],
  [0.5, ioas.noiommuGetPa],
  [1, ioas.compat],
  [0.8, scenes.compat],
  [1, ioas.unknown],
  [5, ioas.destroy],
  [8, hwpt.hwptAlloc],
  [2, hwpt.hwInfo],
  [2, hwpt.setDirty],
  [3, hwpt.getDirty],
  [2, (w) => memory.fileOpen(w)],
  [8, (w) => memory.memory(w)],
  [1, (w) => memory.duplicate(w)],
  [1.5, (w) => vfio.closeFile(w)],
];

const MOCKS: readonly Row[] = [
  [4, selftest.mockDomain],
  [2, selftest.mockDestroy],
  [3, selftest.mockReplace],
  [4, selftest.pasid],
  [2, selftest.accessCreate],
  [5, selftest.accessPages],
  [3, selftest.accessRelease],
  [8, selftest.accessRw],
  [1, selftest.accessReplace],
  [1, selftest.accessClose],
  [3, selftest.checkMap],
  [2, selftest.checkRefs],
  [1, selftest.addReserved],
  [1, selftest.memoryLimit],
  [4, selftest.dirty],
  [1, selftest.iotlb],
  [1, selftest.cache],
  [2, selftest.vevent],
  [2, selftest.iopf],
  [2, selftest.bufferGet],
  [3, selftest.bufferRevoke],
  [0.5, selftest.unknownOp],
  [2, hwpt.invalidate],
  [2, hwpt.faultAlloc],
  [2, hwpt.viommuAlloc],
  [2, hwpt.vdeviceAlloc],
  [1.5, hwpt.veventqAlloc],
  [2, hwpt.hwQueueAlloc],
  [3, hwpt.queueIo],
  [1, hwpt.mapContext],
  [1.5, scenes.pasids],
  [2, scenes.virtual],
  [1.5, scenes.faults],
  [2, scenes.dirty],
];

const DEVICES: readonly Row[] = [
  [3, vfio.deviceOpen],
  [1.5, vfio.deviceClose],
  [4, vfio.attach],
  [2, vfio.detach],
  [0.5, vfio.bindAgain],
  [2, vfio.info],
  [1, vfio.reset],
  [2, vfio.irqs],
  [7, vfio.bufferExport],
  [2, vfio.feature],
  [5, vfio.config],
  [2, vfio.bar],
  [1, vfio.mapBar],
];

/** The sum of weights up to each row, so that one number picks one. */
function wheel(...tables: (readonly Row[])[]): (w: World) => Make {
  const rows = tables.flat();
  const total = rows.reduce((n, [weight]) => n + weight, 0);
  return (w) => {
    let at = (w.rng.u32() / 0x1_0000_0000) * total;
    for (const [weight, make] of rows) {
      at -= weight;
      if (at < 0) return make;
    }
    return ioas.map;
  };
}

const WHEELS: Readonly<Record<Kind, (w: World) => Make>> = {
  mock: wheel(SPACES, MOCKS),
  real: wheel(SPACES, DEVICES),
  mixed: wheel(SPACES, MOCKS, DEVICES),
};

function openContext(w: World): Context {
  const c: Context = {
    fd: w.slot(),
    kind: w.kind,
    ioases: [],
    hwpts: [],
    mocks: [],
    devices: [],
    accesses: [],
    faults: [],
    viommus: [],
    vdevices: [],
    veventqs: [],
    queues: [],
  };
  w.push({ op: "open", n: [2n], path: "/dev/iommu", save: c.fd.slot });
  w.contexts.push(c);
  for (let i = w.chance(0.7) ? 2 : 1; i > 0; i--) ioas.ioasAlloc(w, c);
  if (w.kind !== "real") selftest.mockDomain(w, c);
  if (w.kind !== "mock") vfio.deviceOpen(w, c);
  return c;
}

function closeContext(w: World): void {
  const c = w.take(w.contexts);
  if (c === undefined) return;
  selftest.detachPasids(w, c);
  for (const d of c.devices) w.opened.delete(d.name);
  w.push({ op: "close", fd: c.fd, n: [] });
}

/** Of a seed: its name, and how its calls are made up. */
export interface Plan {
  readonly name: string;
  /** Makes about `length` calls up, each with `perform`. */
  run(length: number, perform: (c: Call) => string): void;
}

export function plan(seed: number): Plan {
  const rng = new Rng(seed);
  const kind: Kind = rng.chance(0.6) ? "mock" : rng.chance(0.6) ? "real" : "mixed";
  return { name: `${seed} ${kind}`, run: (length, perform) => make(new World(rng, kind, perform), length) };
}

function make(w: World, length: number): void {
  const { rng, kind } = w;
  memory.fileOpen(w);
  openContext(w);
  if (rng.chance(0.1)) memory.limits(w);
  while (w.made < length && w.slots < SLOTS - 16) {
    if (w.contexts.length === 0 || (w.contexts.length < 3 && rng.chance(0.006))) openContext(w);
    const c = rng.pick(w.contexts);
    if (rng.chance(0.002)) closeContext(w);
    else WHEELS[kind](w)(w, c);
  }
  while (w.contexts.length > 0) {
    const c = w.contexts.pop();
    if (c !== undefined) selftest.detachPasids(w, c);
  }
}
