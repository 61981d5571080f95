/**
 * Two devices of the recorded machine behind one iommufd, by the calls that a
 * program makes: `engine` does DMA, `peer` has the memory. What a test ends
 * with is checked: nothing is left.
 */
import { afterEach, expect } from "vitest";
import { CallError, type DmaBufHandle, type EmbeddedHost, Host, type Ioas, type Iommufd, type VfioDevice } from "../../src/client/index.ts";
import type { TraceEvent } from "../../src/trace/index.ts";

export const ENGINE = "0000:01:00.0";
export const PEER = "0000:02:00.0";
export const PAGE = 0x1000n;
export const SIZE = 0x4000n;
/** The peer's large BAR. */
export const BAR = 2;
export const AT = 0x10_0000n;

const scenes: Scene[] = [];
afterEach(() => {
  for (const s of scenes.splice(0)) expect(s.host.shutdown()).toEqual({});
});

export class Scene {
  readonly host: EmbeddedHost = Host.embedded("oracle");
  readonly iommufd: Iommufd = this.host.openIommufd();
  readonly engine: VfioDevice = this.host.openDevice(ENGINE).bind(this.iommufd);
  readonly peer: VfioDevice = this.host.openDevice(PEER).bind(this.iommufd);
  readonly ioas: Ioas = this.iommufd.allocIoas();
  readonly events: TraceEvent[] = [];

  constructor() {
    this.engine.attach(this.ioas);
    this.peer.setMemoryEnabled(true);
    this.host.onTrace((r) => void this.events.push(r.event));
    scenes.push(this);
  }

  /** An export of `n` ranges of the peer's BAR, one after the other. */
  export(n = 1, length: bigint = SIZE): DmaBufHandle {
    const ranges = Array.from({ length: n }, (_, i) => ({ offset: BigInt(i) * length, length }));
    return this.peer.exportDmaBuf({ region: BAR, ranges });
  }

  /** What a DMA of the engine to `iova` reaches; undefined: it faults. */
  reaches(iova: bigint): bigint | undefined {
    return this.host.lookUp(ENGINE, iova)?.physical;
  }

  get bar(): bigint {
    const at = this.host.barAddress(PEER, BAR);
    if (at === undefined) throw new Error("the peer has no such BAR");
    return at;
  }

  /** A counter of what the kernel holds, by its name; one that nothing has counted yet is 0. */
  held(what: string): number {
    return this.host.kernel.leakChecks.get(what)?.() ?? 0;
  }

  /** What has been traced since the last look, of the kinds that `pick` names. */
  since(pick: (e: TraceEvent) => string | undefined): string[] {
    const out = this.events.flatMap((e) => pick(e) ?? []);
    this.events.length = 0;
    return out;
  }
}

/** The errno of a call that fails, 0 of one that does not. */
export function errnoOf(call: () => unknown): string {
  try {
    call();
    return "0";
  } catch (e) {
    if (e instanceof CallError) return e.errno.name;
    throw e;
  }
}

/** Reservation, attachment, pin and buffer of a dma-buf, in the order in which they are taken and given back. */
export const bookkeeping = (e: TraceEvent): string | undefined => {
  if ((e.type === "sched.lock" || e.type === "sched.unlock") && e.lock === "RESV") return e.type === "sched.lock" ? "[" : "]";
  const name = /^dma_buf\.(attach|attach_refused|detach|pin|unpin|private_map|private_map_refused|put|release)$/.exec(e.type);
  return name?.[1];
};
