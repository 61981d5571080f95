/** Eventfds that the kernel listens to, ended while a worker of theirs is under way. */
import { expect, test } from "vitest";
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../../../src/uapi/index.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { Bench } from "./bench.ts";

/** Somebody holds the memory lock until told to let go. */
function holdMl(b: Bench): { release(): void } {
  const { memoryLock } = b.core();
  return b.hold(
    () => memoryLock.downWrite(),
    () => memoryLock.upWrite(),
  );
}

function withIoeventfd(): { b: Bench; fd: number; efd: number; change(fd: number): unknown; writes(): unknown[] } {
  const b = new Bench();
  const fd = b.device();
  b.configWrite(fd, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  const efd = b.eventfd();
  const change = (to: number) =>
    b.ioctl(
      fd,
      V.VFIO_DEVICE_IOEVENTFD,
      V.VfioDeviceIoeventfd.alloc({ argsz: V.VfioDeviceIoeventfd.size, flags: 4, offset: 2n << 40n, data: 0x55n, fd: to }),
    );
  expect(change(efd)).toBe(0);
  b.model().accesses.length = 0;
  return { b, fd, efd, change, writes: () => b.model().accesses.filter((a) => a.length === 3) };
}

test("a write that was left to a worker goes out before the close of the device is over", () => {
  const { b, fd, efd, writes } = withIoeventfd();
  const held = holdMl(b);
  b.signalEventfd(efd);
  held.release();
  expect(writes()).toEqual([]);
  b.close(fd);
  expect(writes()).toEqual([[0, 4, 0x55n]]);
  b.settle();
  expect(writes()).toHaveLength(1);
});

test("taken away by the call it is waited for too; signals before the worker begins count as one", () => {
  const { b, efd, change, writes } = withIoeventfd();
  const held = holdMl(b);
  b.signalEventfd(efd);
  b.signalEventfd(efd);
  held.release();
  expect(change(-1)).toBe(0);
  expect(writes()).toEqual([[0, 4, 0x55n]]);
  b.signalEventfd(efd);
  b.settle();
  expect(writes()).toHaveLength(1);
});
