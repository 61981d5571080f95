/** A machine whose kernel was built for its own tests: mock devices, and the test command as one-liners. */
import { afterEach, expect } from "vitest";
import { iommufdSelftestInit } from "../../../src/kernel/iommufd/selftest.ts";
import { Errno } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { IommufdRig, ok } from "./support.ts";

export type TestCmd = ReturnType<typeof u.IommuTestCmd.alloc>;
export type Fill = Partial<Record<keyof TestCmd, object | number>>;

const rigs: SelftestRig[] = [];
afterEach(() => {
  for (const r of rigs.splice(0)) r.finish();
});

/** Start of the mock domain's IOVAs. */
export const START: bigint = u.MOCK_APERTURE_START;

export class SelftestRig extends IommufdRig {
  readonly #bound: ReturnType<IommufdRig["bind"]>[] = [];
  /** Where commands are put. */
  readonly #cmd: bigint = this.user(4096);

  constructor() {
    super();
    iommufdSelftestInit(this.kernel);
    rigs.push(this);
  }

  /** The command as it comes back, or why not. */
  test(op: number, id: number, fill: Fill = {}): { ret: number; cmd: TestCmd } | Errno {
    const cmd = u.IommuTestCmd.alloc({ size: u.IommuTestCmd.size, op, id, ...(fill as object) });
    const at = this.#cmd;
    this.process.mm.memory.write(at, cmd.bytes);
    const ret = this.run(this.process.sys.ioctl(this.fd, u.IOMMU_TEST_CMD, at));
    this.process.mm.memory.read(at, cmd.bytes);
    return ret instanceof Errno ? ret : { ret, cmd };
  }

  /** What the call says, where no output matters. */
  say(op: number, id: number, fill: Fill = {}): Errno | 0 {
    const r = this.test(op, id, fill);
    return r instanceof Errno ? r : 0;
  }

  mock(pt: number, flags = 0): { stdev: number; hwpt: number; idev: number } {
    const { cmd } = ok(this.test(u.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, pt, { mock_domain_flags: { dev_flags: flags } }));
    const { out_stdev_id: stdev, out_hwpt_id: hwpt, out_idev_id: idev } = cmd.mock_domain_flags;
    return { stdev, hwpt, idev };
  }

  access(ioas: number, pins = true): number {
    const flags = pins ? u.MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES : 0;
    return ok(this.test(u.IOMMU_TEST_OP_CREATE_ACCESS, ioas, { create_access: { flags } })).cmd.create_access.out_access_fd;
  }

  /** Id of the pinned pages, or why not. */
  pin(access: number, iova: bigint, length: bigint, uptr: bigint, flags: number = u.MOCK_FLAGS_ACCESS_WRITE): number | Errno {
    const r = this.test(u.IOMMU_TEST_OP_ACCESS_PAGES, access, { access_pages: { iova, length, uptr, flags } });
    return r instanceof Errno ? r : r.cmd.access_pages.out_access_pages_id;
  }

  unpin(access: number, id: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, access, { destroy_access_pages: { access_pages_id: id } });
  }

  rw(access: number, iova: bigint, length: number, uptr: bigint, flags = 0): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_ACCESS_RW, access, { access_rw: { iova, length: BigInt(length), uptr, flags } });
  }

  checkMap(hwpt: number, iova: bigint, length: bigint, uptr: bigint): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_MD_CHECK_MAP, hwpt, { check_map: { iova, length, uptr } });
  }

  checkRefs(uptr: bigint, length: bigint, refs: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_MD_CHECK_REFS, 0, { check_refs: { uptr, length, refs } });
  }

  testDmabuf(length = 0x4000): number {
    return ok(this.test(u.IOMMU_TEST_OP_DMABUF_GET, 0, { dmabuf_get: { length, open_flags: u.O_CLOEXEC } })).ret;
  }

  revokeDmabuf(fd: number, revoked: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_DMABUF_REVOKE, 0, { dmabuf_revoke: { dmabuf_fd: fd, revoked } });
  }

  hwpt(idev: number, ioas: number, init: object = {}): number | Errno {
    const cmd = u.IommuHwptAlloc.alloc({ size: u.IommuHwptAlloc.size, dev_id: idev, pt_id: ioas, ...init });
    const r = this.ioctl(u.IOMMU_HWPT_ALLOC, cmd);
    return r instanceof Errno ? r : cmd.out_hwpt_id;
  }

  override bind(...args: Parameters<IommufdRig["bind"]>): ReturnType<IommufdRig["bind"]> {
    const idev = super.bind(...args);
    this.#bound.push(idev);
    return idev;
  }

  /** The device is not bound any more when the test ends. */
  forget(idev: ReturnType<IommufdRig["bind"]>): void {
    this.#bound.splice(this.#bound.indexOf(idev), 1);
  }

  /** The devices' driver lets go and the process ends; nothing may be left. */
  finish(): void {
    const i = rigs.indexOf(this);
    if (i >= 0) rigs.splice(i, 1);
    this.check();
    for (const idev of this.#bound) {
      this.detach(idev);
      this.unbind(idev);
    }
    if (!this.process.exited) this.run(this.process.exit());
    this.kernel.sched.settle();
    expect(this.leaks()).toEqual({});
    expect(this.kernel.frames.pinned).toBe(0);
  }
}
