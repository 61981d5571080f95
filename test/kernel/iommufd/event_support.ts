/** Fault queues and event queues as one-liners, and what devices were answered. */
import { type PageRequest, reportDeviceFault } from "../../../src/kernel/iommu/io_pagefault.ts";
import type { IommufdDevice } from "../../../src/kernel/iommufd/group.ts";
import { Errno } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { SelftestRig } from "./selftest_support.ts";
import { ok } from "./support.ts";

export const SUCCESS: number = u.IOMMUFD_PAGE_RESP_SUCCESS;
export const INVALID: number = u.IOMMUFD_PAGE_RESP_INVALID;
export const LAST: number = u.IOMMU_PGFAULT_FLAGS_LAST_PAGE;
export const PASID: number = u.IOMMU_PGFAULT_FLAGS_PASID_VALID;
export const FAULT_SIZE: number = u.IommuHwptPgfault.size;

export type Pgfault = ReturnType<typeof u.IommuHwptPgfault.alloc>;

/** A page request of no interest, but for what `init` says. */
export function request(init: Partial<PageRequest> = {}): PageRequest {
  return { flags: LAST, pasid: 0, grpid: 0, perm: u.IOMMU_PGFAULT_PERM_READ, addr: 0x1000n, ...init };
}

/** What a read of an event queue gave. */
export function parseEvents(bytes: Uint8Array): (readonly [sequence: number, virtId: number | "lost"])[] {
  const out: (readonly [number, number | "lost"])[] = [];
  for (let at = 0; at < bytes.length; ) {
    const { flags, sequence } = u.IommufdVeventHeader.over(bytes, at);
    at += u.IommufdVeventHeader.size;
    const lost = (flags & u.IOMMU_VEVENTQ_FLAG_LOST_EVENTS) !== 0;
    out.push([sequence, lost ? "lost" : u.IommuViommuEventSelftest.over(bytes, at).virt_id]);
    if (!lost) at += u.IommuViommuEventSelftest.size;
  }
  return out;
}

export class EventRig extends SelftestRig {
  readonly buf: bigint = this.user(0x4000);
  /** Nothing can be accessed in the page here; all can, in the one before it. */
  readonly hole: bigint = this.#beforeHole();

  #beforeHole(): bigint {
    const at = this.user(0x2000);
    ok(this.run(this.process.sys.mprotect(at + 0x1000n, 0x1000n, u.PROT_NONE)) ?? 0);
    return at + 0x1000n;
  }

  /** A fault queue and its descriptor. */
  faultQueue(): { id: number; fd: number } {
    const cmd = u.IommuFaultAlloc.alloc({ size: u.IommuFaultAlloc.size });
    ok(this.ioctl(u.IOMMU_FAULT_QUEUE_ALLOC, cmd));
    return { id: cmd.out_fault_id, fd: cmd.out_fault_fd };
  }

  /** A hardware page table with a fault queue. */
  iopfHwpt(idev: number, ioas: number, fault: number, flags = 0): number {
    return ok(this.hwpt(idev, ioas, { flags: flags | u.IOMMU_HWPT_FAULT_ID_VALID, fault_id: fault }));
  }

  /** A mock device on a table with a fault queue of its own. */
  faulting(flags = 0): { ioas: number; hwpt: number; stdev: number; idev: number; fault: { id: number; fd: number } } {
    const ioas = this.allocIoas();
    const { stdev, idev } = this.mock(ioas, flags);
    const fault = this.faultQueue();
    const hwpt = this.iopfHwpt(idev, ioas, fault.id, (flags & u.MOCK_FLAGS_DEVICE_PASID) === 0 ? 0 : u.IOMMU_HWPT_ALLOC_PASID);
    ok(this.moveTo(stdev, hwpt));
    return { ioas, hwpt, stdev, idev, fault };
  }

  /** A virtual IOMMU with a mock device that it calls `virtId`, on a table nested there; with a fault queue if one is given. */
  guest(
    virtId: bigint,
    fault?: { id: number },
  ): { viommu: number; vdev: number; stdev: number; idev: number; ioas: number; nested: number } {
    const ioas = this.allocIoas();
    const { stdev, idev } = this.mock(ioas);
    const parent = ok(this.hwpt(idev, ioas, { flags: u.IOMMU_HWPT_ALLOC_NEST_PARENT }));
    const viommu = this.viommu(idev, parent);
    const vdevice = u.IommuVdeviceAlloc.alloc({ size: u.IommuVdeviceAlloc.size, viommu_id: viommu, dev_id: idev, virt_id: virtId });
    ok(this.ioctl(u.IOMMU_VDEVICE_ALLOC, vdevice));
    const nested = this.nested(idev, viommu, fault);
    ok(this.moveTo(stdev, nested));
    return { viommu, vdev: vdevice.out_vdevice_id, stdev, idev, ioas, nested };
  }

  viommu(idev: number, parent: number): number {
    const type = u.IOMMU_VIOMMU_TYPE_SELFTEST;
    const cmd = u.IommuViommuAlloc.alloc({ size: u.IommuViommuAlloc.size, type, dev_id: idev, hwpt_id: parent });
    ok(this.ioctl(u.IOMMU_VIOMMU_ALLOC, cmd));
    return cmd.out_viommu_id;
  }

  /** A table nested in `on`, a nesting parent or a virtual IOMMU. */
  nested(idev: number, on: number, fault?: { id: number }): number {
    const data = this.put(u.IommuHwptSelftest.alloc({ iotlb: u.IOMMU_TEST_IOTLB_DEFAULT }).bytes);
    const common = { data_type: u.IOMMU_HWPT_DATA_SELFTEST, data_len: u.IommuHwptSelftest.size, data_uptr: data };
    const queue = fault === undefined ? {} : { flags: u.IOMMU_HWPT_FAULT_ID_VALID, fault_id: fault.id };
    return ok(this.hwpt(idev, on, { ...common, ...queue }));
  }

  /** A queue of a virtual IOMMU's events and its descriptor, or why not. */
  veventq(viommu: number, init: object = {}): { id: number; fd: number } | Errno {
    const want = { viommu_id: viommu, type: u.IOMMU_VEVENTQ_TYPE_SELFTEST, veventq_depth: 2, ...init };
    const cmd = u.IommuVeventqAlloc.alloc({ size: u.IommuVeventqAlloc.size, ...want });
    const e = this.ioctl(u.IOMMU_VEVENTQ_ALLOC, cmd);
    return e === 0 ? { id: cmd.out_veventq_id, fd: cmd.out_veventq_fd } : e;
  }

  /** An event of the virtual IOMMU of a device. */
  vevent(idev: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_TRIGGER_VEVENT, 0, { trigger_vevent: { dev_id: idev } });
  }

  /** What a read of `count` bytes gives, events by sequence number and what they carry, or why it fails. */
  readEvents(fd: number, count = 0x1000): (readonly [sequence: number, virtId: number | "lost"])[] | Errno {
    const r = this.read(fd, count);
    return r instanceof Errno ? r : parseEvents(this.peek(this.buf, r));
  }

  moveTo(stdev: number, pt: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace: { pt_id: pt } });
  }

  attachPasid(stdev: number, pasid: number, pt: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_PASID_ATTACH, stdev, { pasid_attach: { pasid, pt_id: pt } });
  }

  replacePasid(stdev: number, pasid: number, pt: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_PASID_REPLACE, stdev, { pasid_replace: { pasid, pt_id: pt } });
  }

  detachPasid(stdev: number, pasid: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_PASID_DETACH, stdev, { pasid_detach: { pasid } });
  }

  /** A group of one page request. */
  trigger(idev: number, { pasid = 0, grpid = 0, perm = 3, addr = 0xdead_beafn } = {}): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_TRIGGER_IOPF, 0, { trigger_iopf: { dev_id: idev, pasid, grpid, perm, addr } });
  }

  /** A page request as the unit's driver reports it, which need not be its group's last. */
  report(idev: number, init: Partial<PageRequest>): Errno | undefined {
    const { dev } = this.ctx.objects.load(idev) as IommufdDevice;
    return this.call(() => reportDeviceFault(dev, request(init)));
  }

  read(fd: number, count: number, at: bigint = this.buf): number | Errno {
    return this.run(this.process.sys.read(fd, at, count));
  }

  /** The faults that a read with room for `n` gives, or why it fails. */
  readFaults(fd: number, n: number): Pgfault[] | Errno {
    const r = this.read(fd, n * FAULT_SIZE);
    if (r instanceof Errno) return r;
    const bytes = this.peek(this.buf, r);
    return Array.from({ length: r / FAULT_SIZE }, (_, i) => u.IommuHwptPgfault.over(bytes, i * FAULT_SIZE));
  }

  /** Answers by cookie; bytes taken, or why none. */
  answer(fd: number, ...answers: readonly (readonly [cookie: number, code: number])[]): number | Errno {
    const bytes = answers.flatMap(([cookie, code]) => [...u.IommuHwptPageResponse.alloc({ cookie, code }).bytes]);
    this.process.mm.memory.write(this.buf, Uint8Array.from(bytes));
    return this.run(this.process.sys.write(fd, this.buf, bytes.length));
  }

  /** What poll says at once. */
  ready(fd: number): number {
    const entry = { fd, events: u.POLLIN | u.POLLOUT | u.POLLRDNORM, revents: 0 };
    ok(this.run(this.process.sys.poll([entry], 0)));
    return entry.revents;
  }

  /** What devices have been answered so far. */
  get responses(): { device: string; pasid: number; grpid: number; code: string }[] {
    return this.events.flatMap((e) => {
      if (e.type !== "iommu.page_response") return [];
      const { device, pasid, grpid, code } = e;
      return [{ device, pasid, grpid, code }];
    });
  }

  /** The codes alone. */
  get codes(): string[] {
    return this.responses.map((r) => r.code);
  }
}
