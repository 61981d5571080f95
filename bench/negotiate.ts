/**
 * What an agreement costs: MAP_FILE and UNMAP of a VFIO buffer into a domain,
 * and a revoke with its return, on the negotiated path and on Linux 7.3's, turn
 * by turn in one run. Through the ioctls, as a program makes them.
 *
 * Arguments: rounds (default 30).
 */
import { Host, type Ioas, readMachine, type VfioDevice } from "../src/client/index.ts";
import type { InterconnectKind } from "../src/kernel/kernel.ts";
import {
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  IommuIoasMapFile,
  IommuIoasUnmap,
} from "../src/uapi/index.ts";

const CALLS = 400;
const IOVA = 0x4000_0000n;
const PEER = "0000:04:00.0";

interface Path {
  readonly name: InterconnectKind;
  readonly peer: VfioDevice;
  readonly ioas: Ioas;
  /** One MAP_FILE and its UNMAP. */
  pair(): void;
}

function path(name: InterconnectKind, length: bigint): Path {
  const host = Host.embedded({ ...readMachine("negotiated"), interconnect: name });
  const iommufd = host.openIommufd();
  const engine = host.openDevice("0000:01:00.0").bind(iommufd);
  const peer = host.openDevice(PEER).bind(iommufd);
  const ioas = iommufd.allocIoas();
  engine.attach(ioas);
  peer.setMemoryEnabled(true);
  const { fd } = peer.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length }] });
  const map = IommuIoasMapFile.alloc({
    size: IommuIoasMapFile.size,
    flags: IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_FIXED_IOVA,
    ioas_id: ioas.id,
    fd,
    length,
    iova: IOVA,
  });
  const unmap = IommuIoasUnmap.alloc({ size: IommuIoasUnmap.size, ioas_id: ioas.id, iova: IOVA, length });
  const pair = (): void => {
    if (host.os.ioctlBytes(iommufd.fd, IOMMU_IOAS_MAP_FILE, map.bytes) !== 0) throw new Error("MAP_FILE fails");
    unmap.length = length;
    if (host.os.ioctlBytes(iommufd.fd, IOMMU_IOAS_UNMAP, unmap.bytes) !== 0) throw new Error("UNMAP fails");
  };
  return { name, peer, ioas, pair };
}

const median = (times: number[]): number => times.sort((a, b) => a - b)[times.length >> 1] as number;

/** Microseconds of one call, the median of rounds that take turns. */
function compare(rounds: number, calls: number, subjects: readonly (() => void)[]): number[] {
  const times: number[][] = subjects.map(() => []);
  for (let r = 0; r < rounds + 5; r++) {
    for (const [i, call] of subjects.entries()) {
      const begun = performance.now();
      for (let n = 0; n < calls; n++) call();
      // The first rounds warm up.
      if (r >= 5) times[i]?.push(((performance.now() - begun) * 1000) / calls);
    }
  }
  return times.map(median);
}

function line(what: string, [linux, negotiated]: number[]): void {
  const a = linux as number;
  const b = negotiated as number;
  process.stdout.write(
    `${what.padEnd(46)}${a.toFixed(2).padStart(9)} µs${b.toFixed(2).padStart(9)} µs${(b / a).toFixed(2).padStart(8)}×\n`,
  );
}

export function run(args: string[]): void {
  const rounds = Number(args[0] ?? 30);
  process.stdout.write(`${"".padEnd(46)}${"Linux 7.3's".padStart(12)}${"negotiated".padStart(12)}\n`);
  for (const [length, label] of [
    [0x1000n, "4 KiB"],
    [0x10_0000n, "1 MiB"],
    [0x1000_0000n, "256 MiB"],
  ] as const) {
    const paths = (["linux-7.3", "negotiated"] as const).map((name) => path(name, length));
    line(
      `MAP_FILE + UNMAP, ${label}`,
      compare(
        rounds,
        CALLS,
        paths.map((p) => p.pair),
      ),
    );
  }
  const paths = (["linux-7.3", "negotiated"] as const).map((name) => path(name, 0x10_0000n));
  const toggles = paths.map((p) => (): void => {
    p.peer.setMemoryEnabled(false);
    p.peer.setMemoryEnabled(true);
  });
  line("revoke + return, nothing mapped", compare(rounds, 50, toggles));
}
