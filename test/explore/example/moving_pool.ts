import { InvariantBroken, kernelScenario, type Scenario } from "../../../src/explore/index.ts";
import * as k from "../../../src/kernel/index.ts";

class Pool implements k.DmaBufOps {
  place = 0n; // The memory moves: once it has, its old place is somebody else's.
  *mapDmaBuf(): k.Step<k.SgTable> {
    return { entries: [{ address: this.place, length: 4096n }], priv: undefined };
  }
  *unmapDmaBuf(): k.Step<void> {}
  *release(): k.Step<void> {}
}
export const movingPool = (careful: boolean): Scenario =>
  kernelScenario({
    name: "moving-pool",
    summary: "an importer's device reads while the exporter moves the memory",
    world(kernel, recorder) {
      kernel.modules.load("pool");
      const [pool, device] = [new Pool(), { reads: -1n }];
      recorder.watch(device, "reads"); // What no lock guards must be watched, to order the steps that use it.
      const info = { expName: "pool", owner: "pool", ops: pool, size: 4096n, flags: 0, priv: undefined };
      return { kernel, pool, device, buffer: k.dmaBufExport(kernel, info) as k.DmaBuf };
    },
    tasks: {
      *reader({ kernel, buffer, device }) {
        const ops = { allowPeer2peer: false, *invalidateMappings() {} };
        const att = (yield* k.dmaBufDynamicAttach(buffer, new k.Device("gpu", "pci", 64), ops)) as k.DmaBufAttachment;
        yield* buffer.resv.lock();
        device.reads = ((yield* k.dmaBufMapAttachment(att, "to_device")) as k.SgTable).entries[0]?.address ?? -1n;
        if (!careful) buffer.resv.unlock(); // The mistake: from here on the memory may move.
        yield* kernel.sched.yield();
        device.reads = -1n;
        if (careful) buffer.resv.unlock(); // Right: the reservation is held for as long as the device reads.
      },
      *mover({ pool, buffer, device }) {
        yield* buffer.resv.lock();
        pool.place = 4096n;
        yield* k.dmaBufInvalidateMappings(buffer);
        if (device.reads === 0n) throw new InvariantBroken("the device reads where the memory was");
        buffer.resv.unlock();
      },
    },
  });
