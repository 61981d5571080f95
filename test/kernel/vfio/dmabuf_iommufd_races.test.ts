/**
 * Mapping threads against a thread that turns memory decode off and on, over
 * ioctls and config writes, in any order of their steps. Recorded on Linux
 * under the same load: successes and ENODEV, nothing else.
 */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { PrivateMap } from "../../../src/kernel/dma_buf/interconnect.ts";
import type { PhysVec } from "../../../src/kernel/dma_buf/mapping.ts";
import type { VfioPciDmaBuf } from "../../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
import { Errno } from "../../../src/lib/errno.ts";
import type { Step, Task } from "../../../src/sched/task.ts";
import {
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  IommuIoasCopy,
  IommuIoasMapFile,
  IommuIoasUnmap,
  VFIO_PCI_CONFIG_REGION_INDEX,
} from "../../../src/uapi/index.ts";
import { Bench, RAM_BYTES } from "./bench.ts";

const MMIO = 16;
const RW = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
const COMMAND = (BigInt(VFIO_PCI_CONFIG_REGION_INDEX) << 40n) + 4n;

class Race {
  readonly b: Bench = new Bench();
  readonly device: number;
  readonly ioas: number;
  readonly dmabuf: number;
  /** Device memory mapped in any domain: `domain:iova` → bytes. */
  readonly mmio: Map<string, bigint> = new Map();
  readonly results: string[] = [];

  constructor() {
    const { b } = this;
    this.device = b.device();
    b.configWrite(this.device, 4, 2, 2);
    this.ioas = b.ioas();
    expect(b.attach(this.device, this.ioas)).toBe(0);
    const fd = b.exportBar(this.device);
    if (fd instanceof Errno) throw new Error(fd.name);
    this.dmabuf = fd;
    b.kernel.trace.listen(({ event: e }) => {
      if (e.type === "iommu.map" && e.errno === undefined && (e.prot & MMIO) !== 0) this.mmio.set(`${e.domain}:${e.iova}`, e.length);
      if (e.type === "iommu.unmap" && e.unmapped > 0n) this.mmio.delete(`${e.domain}:${e.iova}`);
    });
    b.kernel.sched.interleave = true;
  }

  page(bytes: Uint8Array): bigint {
    const { b } = this;
    const addr = b.ok(b.process.sys.mmap(0n, 4096n, 3, 0x22, -1));
    b.process.space.write(addr, bytes);
    return addr;
  }

  /** Maps the buffer, perhaps copies the area, and unmaps, `rounds` times. */
  mapper(rounds: number, copies: boolean): () => Step<void> {
    const { b, ioas } = this;
    const { sys, space } = b.process;
    const args = this.page(new Uint8Array(256));
    const view = { iova: (of: { bytes: Uint8Array }) => space.read(args, of.bytes) };
    const self = this;
    const call = function* (cmd: number, v: { bytes: Uint8Array }): Step<string> {
      space.write(args, v.bytes);
      const r = yield* sys.ioctl(b.iommufd, cmd, args);
      view.iova(v);
      return r instanceof Errno ? r.name : "ok";
    };
    const unmap = function* (iova: bigint): Step<void> {
      const u = IommuIoasUnmap.alloc({ size: IommuIoasUnmap.size, ioas_id: ioas, iova, length: RAM_BYTES });
      self.results.push(`unmap ${yield* call(IOMMU_IOAS_UNMAP, u)} ${u.length === RAM_BYTES ? "all" : u.length}`);
    };
    return function* (): Step<void> {
      for (let i = 0; i < rounds; i++) {
        const m = IommuIoasMapFile.alloc({ size: IommuIoasMapFile.size, flags: RW, ioas_id: ioas, fd: self.dmabuf, length: RAM_BYTES });
        const r = yield* call(IOMMU_IOAS_MAP_FILE, m);
        self.results.push(`map ${r}`);
        if (r !== "ok") continue;
        if (copies) {
          const c = IommuIoasCopy.alloc({
            size: IommuIoasCopy.size,
            flags: RW,
            dst_ioas_id: ioas,
            src_ioas_id: ioas,
            length: RAM_BYTES,
            src_iova: m.iova,
          });
          const copied = yield* call(IOMMU_IOAS_COPY, c);
          self.results.push(`copy ${copied}`);
          if (copied === "ok") yield* unmap(c.dst_iova);
        }
        yield* unmap(m.iova);
      }
    };
  }

  /** Decode off and on again. When a write that turns it off returns, nothing may be mapped (I1). */
  toggler(rounds: number): () => Step<void> {
    const { b, device } = this;
    const { sys } = b.process;
    const [off, on] = [this.page(Uint8Array.of(0, 0)), this.page(Uint8Array.of(2, 0))];
    const { mmio } = this;
    return function* (): Step<void> {
      for (let i = 0; i < rounds; i++) {
        expect(yield* sys.pwrite(device, off, 2, COMMAND)).toBe(2);
        expect([...mmio.keys()]).toEqual([]);
        // And nothing may come to be mapped while it stays off (I2).
        for (let n = 0; n < 4; n++) {
          yield* b.kernel.sched.yield();
          expect([...mmio.keys()]).toEqual([]);
        }
        expect(yield* sys.pwrite(device, on, 2, COMMAND)).toBe(2);
      }
    };
  }

  /** Steps the threads in the order chosen until all have ended. */
  drive(bodies: readonly (() => Step<void>)[], choices: readonly number[]): void {
    const { sched } = this.b.kernel;
    const tasks = bodies.map((body, i) => {
      const t = this.b.process.newThread(`thread ${i}`);
      sched.start(t, body());
      return t;
    });
    for (let n = 0; ; n++) {
      const ready = sched.liveTasks().filter((t) => t.state === "runnable");
      if (ready.length === 0) break;
      sched.step(ready[(choices[n % choices.length] as number) % ready.length] as Task);
    }
    for (const t of tasks) if (t.error !== undefined) throw t.error;
    expect(tasks.map((t) => t.state)).toEqual(tasks.map(() => "done"));
    sched.interleave = false;
  }
}

const plan = fc.record({
  choices: fc.array(fc.nat(5), { minLength: 50, maxLength: 300 }),
  maps: fc.integer({ min: 1, max: 3 }),
  toggles: fc.integer({ min: 1, max: 3 }),
  copies: fc.boolean(),
});

describe("two mapping threads and one that toggles decode", () => {
  it("see successes and ENODEV and nothing else, and from revoke to restore nothing is mapped", () => {
    const seen = new Set<string>();
    fc.assert(
      fc.property(plan, ({ choices, maps, toggles, copies }) => {
        const race = new Race();
        race.drive([race.mapper(maps, copies), race.mapper(maps, false), race.toggler(toggles)], choices);
        for (const r of race.results) seen.add(r);
        expect(race.mmio.size).toBe(0);
        race.b.finish();
      }),
      { numRuns: 60, seed: 20260731 },
    );
    // A copy of an area that died meanwhile succeeds, as recorded.
    expect([...seen].sort()).toEqual(["copy ok", "map ENODEV", "map ok", "unmap ok all"]);
  });

  it("would map a revoked buffer if the exporter did not look again under the reservation (H6)", () => {
    const careless: PrivateMap = (att) => (att.dmabuf.priv as VfioPciDmaBuf).physVec[0] as PhysVec;
    const failed = fc.check(
      fc.property(plan, ({ choices, maps, toggles }) => {
        const race = new Race();
        race.b.expectLeaks();
        race.b.kernel.modules.exportSymbol("vfio_pci_core", "vfio_pci_dma_buf_iommufd_map", careless, ["iommufd"]);
        race.drive([race.mapper(maps, false), race.mapper(maps, false), race.toggler(toggles)], choices);
      }),
      { numRuns: 200, seed: 20260731, endOnFailure: true },
    );
    expect(failed.failed).toBe(true);
    expect(String(failed.errorInstance)).toContain("to deeply equal []");
  });

  it("§4.2 row 4: a map that was overtaken by a revoke succeeds, and maps nothing for ever (N6)", () => {
    const race = new Race();
    const { sched } = race.b.kernel;
    const t = race.b.process.newThread("mapper");
    const args = race.page(
      IommuIoasMapFile.alloc({ size: IommuIoasMapFile.size, flags: RW, ioas_id: race.ioas, fd: race.dmabuf, length: RAM_BYTES }).bytes,
    );
    sched.start(t, race.b.process.sys.ioctl(race.b.iommufd, IOMMU_IOAS_MAP_FILE, args));
    // As far as the physical address, and out of the reservation.
    while (!race.b.events.some((e) => e.type === "dma_buf.private_map") || t.held.length > 0) sched.step(t);
    race.b.configWrite(race.device, 4, 2, 0);
    race.b.configWrite(race.device, 4, 2, 2);
    expect(sched.finish(t)).toBe(0);
    expect(race.mmio.size).toBe(0);
    sched.interleave = false;
    const again = race.b.mapFile(race.ioas, race.dmabuf);
    expect(again instanceof Errno).toBe(false);
    expect(race.mmio.size).toBe(1);
  });
});
