/** New descriptors: another thread closes one by its number; its number cannot be told. */
import { BAR, BYTES, FIRST, scenarioOf } from "../../../../src/explore/scenarios/stage.ts";
import { InvariantBroken, type Scenario } from "../../../../src/explore/tasks.ts";
import { DMA_HEAP_IOCTL_ALLOC, DmaHeapAllocationData, O_RDWR, PROT_READ, VFIO_DEVICE_FEATURE } from "../../../../src/uapi/index.ts";

export const closedByNumber = (): Scenario =>
  scenarioOf({
    name: "closed-by-number",
    summary: "an export against a close of the number that it will get",
    setUp(stage) {
      const { calls } = stage;
      const { fd: device } = calls.openDevice(FIRST, calls.openIommufd());
      calls.setMemory(device, true);
      const args = calls.exportArgs(BAR, BYTES);
      const next = calls.must(calls.process.sys.dup(device));
      calls.must(calls.process.sys.close(next));
      stage.watchFiles([]);
      return { device, args, next };
    },
    tasks: {
      export: (w, stage) => stage.ioctl(w.device, VFIO_DEVICE_FEATURE, w.args),
      close: (w, stage) => stage.answered(stage.calls.process.sys.close(w.next), ["EBADF"]),
    },
  });

export const copiesOut = (): Scenario =>
  scenarioOf({
    name: "copies-out",
    summary: "an allocation from the system heap whose answer cannot be written",
    setUp({ calls }) {
      const { sys } = calls.process;
      const heap = calls.must(sys.open("/dev/dma_heap/system", O_RDWR));
      const args = calls.page(DmaHeapAllocationData.alloc({ len: 0x1000n, fd_flags: O_RDWR }).bytes);
      const { size } = calls.process.files;
      return { heap, args, size };
    },
    tasks: {
      *allocate(w, stage) {
        const { sys } = stage.calls.process;
        if (stage.recorder.choose(2, "the page can only be read") === 1) yield* sys.mprotect(w.args, 0x1000n, PROT_READ);
        return yield* stage.ioctl(w.heap, DMA_HEAP_IOCTL_ALLOC, w.args, ["EFAULT"]);
      },
    },
    end(w, { calls }) {
      const bytes = new Uint8Array(DmaHeapAllocationData.size);
      calls.process.mm.memory.read(w.args, bytes);
      const known = DmaHeapAllocationData.over(bytes).fd === 0 ? 0 : 1;
      if (calls.process.files.size !== w.size + known) throw new InvariantBroken("the call has made a descriptor that nobody knows");
      return `${known} known`;
    },
  });
