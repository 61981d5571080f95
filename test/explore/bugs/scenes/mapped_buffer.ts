/**
 * The proposal of 2026 to map an exported BAR through its buffer, and what was
 * found wrong with it: the fault looks up the device of the buffer, and then
 * waits for its memory lock, while the last close lets the device go.
 */
import { bufferLifetime } from "../../../../src/explore/scenarios/buffer_lifetime.ts";
import { InvariantBroken, type Scenario } from "../../../../src/explore/tasks.ts";
import type { DmaBufDevice, VfioPciDmaBuf } from "../../../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
import type { Step } from "../../../../src/sched/task.ts";

type Fault = (buffer: VfioPciDmaBuf) => Step<string>;

/** Under its memory lock, the device is in place and reachable. */
function* serve(vdev: DmaBufDevice): Step<string> {
  yield* vdev.memoryLock.downRead();
  // The lock is a part of the device.
  const served = vdev.vdev.kernel !== undefined && vdev.memoryEnabled();
  vdev.memoryLock.upRead();
  return served ? "ok" : "SIGBUS";
}

const asProposed: Fault = function* (buffer) {
  const { vdev } = buffer;
  return vdev === undefined ? "SIGBUS" : yield* serve(vdev);
};

const withCure: Fault = function* (buffer) {
  const { resv } = buffer.dmabuf;
  yield* resv.lock();
  const { vdev } = buffer;
  const held = vdev !== undefined && !buffer.revoked && vdev.vdev.tryGetRegistration();
  resv.unlock();
  if (vdev === undefined || !held) return "SIGBUS";
  const r = yield* serve(vdev);
  const live = !buffer.revoked;
  vdev.vdev.putRegistration();
  return live ? r : "SIGBUS";
};

export const mappedBuffer = (how: "as proposed" | "with the cure"): Scenario => {
  const fault = how === "as proposed" ? asProposed : withCure;
  return bufferLifetime({
    tasks: ["close", "unbind"],
    more: {
      *fault({ buffer }): Step<string> {
        if (buffer.dmabuf.file.count.count === 0) throw new InvariantBroken("a mapping holds its buffer");
        return yield* fault(buffer);
      },
    },
  });
};
