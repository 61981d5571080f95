/**
 * "May the device's memory be reached?": a user turns decode and power off and
 * on, resets, wakes and exports, in every order, while another task maps.
 *
 * The first task makes a few calls, each of which is a choice. Whenever a
 * writer lets go of the memory lock, memory that the exporter takes for
 * unreachable (decode off, D3hot) has its buffers revoked (I6).
 *
 * Two more things could be asked, and do not hold: that low power counts as
 * unreachable (N1), and that buffers live again as soon as memory can be reached
 * (N2, N14). `demand` asks for them.
 */
import type { VfioPciCoreDevice } from "../../kernel/vfio/pci/vfio_pci_core.ts";
import { EFAULT } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import {
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_UNMAP,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY,
  VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
  VFIO_DEVICE_FEATURE_LOW_POWER_EXIT,
  VFIO_DEVICE_FEATURE_SET,
  VFIO_DEVICE_GET_INFO,
  VFIO_DEVICE_RESET,
  VfioDeviceFeature,
  VfioDeviceInfo,
  VfioDeviceLowPowerEntryWithWakeup,
} from "../../uapi/index.ts";
import { InvariantBroken, type Scenario } from "../tasks.ts";
import { COMMAND, regionAt } from "./calls.ts";
import { type Alter, BAR, BYTES, FIRST, IOVA, type Play, SECOND, type Stage, scenarioOf } from "./stage.ts";

/** What the user may do. */
export type PowerCall =
  | "off"
  | "on"
  /** A write that turns decode off, which the function refuses. */
  | "off, refused"
  | "d3hot"
  | "d0"
  | "entry"
  | "entry with wakeup"
  | "exit"
  | "reset"
  /** Any call, for which the device wakes. */
  | "wake"
  | "export"
  /** A write to the BAR by a call, which wakes the device too. */
  | "bar write";

const CALLS: readonly PowerCall[] = ["off", "on", "d3hot", "d0", "entry", "entry with wakeup", "exit", "reset", "wake", "export"];

/** What is asked whenever the memory lock is free. */
export type Demand =
  /** As the exporter decides: nothing is live in D3hot or without decode. */
  | "as the exporter decides"
  /** And nothing is live while the user has asked for low power. */
  | "low power counts"
  /** And everything is live otherwise. */
  | "restored when reachable";

export interface MemoryPredicateWorld {
  readonly iommufd: number;
  readonly vdev: VfioPciCoreDevice;
  readonly map: bigint;
  readonly unmap: bigint;
  readonly calls: Readonly<Record<PowerCall, () => Step<string>>>;
}

export interface MemoryPredicateOptions {
  /** Calls of the user; default 2. */
  readonly length?: number;
  /** Among which to choose; default all but a refused write and a write to the BAR. */
  readonly menu?: readonly PowerCall[];
  /** Exactly these calls, with nothing to choose. */
  readonly script?: readonly PowerCall[];
  readonly demand?: Demand;
  /** Whether the task that maps is there. Default: it is. */
  readonly mapper?: boolean;
  readonly alter?: Alter<MemoryPredicateWorld>;
}

function setUp(stage: Stage): MemoryPredicateWorld {
  const { calls } = stage;
  const { sys } = calls.process;
  const iommufd = calls.openIommufd();
  const { fd } = calls.openDevice(FIRST, iommufd);
  const range = { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES };
  calls.attach(calls.openDevice(SECOND, iommufd).fd, range.ioas);
  calls.setMemory(fd, true);
  const vdev = stage.vdev();
  const map = calls.mapFileArgs(calls.exportBar(fd, BAR, BYTES), range);
  const config = (at: bigint, ...bytes: number[]): (() => Step<string>) => {
    const args = calls.page(Uint8Array.from(bytes));
    return () => stage.answered(sys.pwrite(fd, args, bytes.length, at), ["EFAULT", "EIO"]);
  };
  const power = (state: number): (() => Step<string>) => config(COMMAND - 4n + BigInt(vdev.pdev.pmCap) + 4n, state, 0);
  const ioctl =
    (cmd: number, args: bigint, errors: readonly string[] = []): (() => Step<string>) =>
    () =>
      stage.ioctl(fd, cmd, args, errors);
  const feature = (flags: number, payload: Uint8Array = new Uint8Array()): (() => Step<string>) => {
    const bytes = new Uint8Array(VfioDeviceFeature.size + payload.length);
    Object.assign(VfioDeviceFeature.over(bytes), { argsz: bytes.length, flags: VFIO_DEVICE_FEATURE_SET | flags });
    bytes.set(payload, VfioDeviceFeature.size);
    return ioctl(VFIO_DEVICE_FEATURE, calls.page(bytes), ["EINVAL"]);
  };
  const wakeup = VfioDeviceLowPowerEntryWithWakeup.alloc({ wakeup_eventfd: calls.must(sys.eventfd(0)) });
  const off = config(COMMAND, 0, 0);
  const world: MemoryPredicateWorld = {
    iommufd,
    vdev,
    map,
    unmap: calls.unmapArgs(range),
    calls: {
      off,
      on: config(COMMAND, 2, 0),
      *"off, refused"() {
        vdev.configFault = (_pos, isWrite) => (isWrite ? EFAULT : undefined);
        const r = yield* off();
        vdev.configFault = undefined;
        return r;
      },
      d3hot: power(3),
      d0: power(0),
      entry: feature(VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY),
      "entry with wakeup": feature(VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, wakeup.bytes),
      exit: feature(VFIO_DEVICE_FEATURE_LOW_POWER_EXIT),
      reset: ioctl(VFIO_DEVICE_RESET, 0n),
      wake: ioctl(VFIO_DEVICE_GET_INFO, calls.page(VfioDeviceInfo.alloc({ argsz: VfioDeviceInfo.size }).bytes)),
      "bar write": config(regionAt(BAR), 1, 2, 3, 4),
      export: ioctl(VFIO_DEVICE_FEATURE, calls.exportArgs(BAR, BYTES)),
    },
  };
  return world;
}

/** Why a buffer must not live now; undefined when it may. */
function unreachable(vdev: VfioPciCoreDevice, demand: Demand): string | undefined {
  if (!vdev.memoryEnabled()) return "without decode, or in D3hot";
  return demand !== "as the exporter decides" && vdev.pmRuntimeEngaged ? "in low power" : undefined;
}

function check(vdev: VfioPciCoreDevice, demand: Demand): void {
  const why = unreachable(vdev, demand);
  for (const buffer of vdev.dmabufs) {
    if (why !== undefined && !buffer.revoked) throw new InvariantBroken(`I6: a buffer lives ${why}`);
    if (why === undefined && buffer.revoked && demand === "restored when reachable")
      throw new InvariantBroken("a buffer stays revoked though memory can be reached");
  }
}

function* mapTask({ iommufd, map, unmap }: MemoryPredicateWorld, stage: Stage): Step<string> {
  const mapped = yield* stage.ioctl(iommufd, IOMMU_IOAS_MAP_FILE, map, ["ENODEV"]);
  if (mapped === "0") yield* stage.ioctl(iommufd, IOMMU_IOAS_UNMAP, unmap);
  return mapped;
}

export function memoryPredicate({
  script,
  length = script?.length ?? 2,
  menu = CALLS,
  demand = "as the exporter decides",
  mapper = true,
  alter,
}: MemoryPredicateOptions = {}): Scenario {
  const play: Play<MemoryPredicateWorld> = {
    name: "memory-predicate",
    summary: "decode, power, resets, wakes and exports in every order, against MAP_FILE",
    functions: 2,
    setUp,
    tasks: {
      *user({ calls, vdev }, { recorder, kernel }): Step<string> {
        recorder.watch(vdev.pdev.pm, "usageCount");
        vdev.memoryLock.released = () => check(vdev, demand);
        const did: string[] = [];
        for (let i = 0; i < length; i++) {
          // Between two calls others may run.
          if (i > 0) yield* kernel.sched.yield();
          const call = script?.[i] ?? (menu[recorder.choose(menu.length, "call")] as PowerCall);
          did.push(`${call} ${yield* calls[call]()}`);
        }
        return did.join(", ");
      },
      ...(mapper && { map: mapTask }),
    },
    end({ vdev }) {
      vdev.memoryLock.released = undefined;
      return vdev.dmabufs.map((b) => (b.revoked ? "revoked" : "live")).join(" ");
    },
  };
  return scenarioOf(play, alter);
}
