/** Section `access`: in-kernel accesses, a mock domain and the test exporter, through the kernel's test command. */
import { Errno } from "../src/lib/index.ts";
import * as u from "../src/uapi/index.ts";
import { BARIOVA, Env, MEMIOVA, type Recorder, RWF } from "./p2p_env.ts";

type TestCmd = ReturnType<typeof u.IommuTestCmd.alloc>;

/** A test command as the program fills it. */
function command(op: number, id: number, fill: (c: TestCmd) => void = () => {}): TestCmd {
  const c = u.IommuTestCmd.alloc({ size: u.IommuTestCmd.size, op, id });
  fill(c);
  return c;
}

export function sectionAccess(r: Recorder): void {
  r.sec = "access";
  const v = Env.open(r);
  const test = (c: TestCmd): number | Errno => r.os.ioctlBytes(v.ifd, u.IOMMU_TEST_CMD, c.bytes);
  const d = r.export1(v.x.fd, r.region, 0x3000n, 0x4000n, "part");
  r.mapFile(v.ifd, v.ioas, d, 0n, 0x4000n, BARIOVA, RWF, "dmabuf area");
  const ca = command(u.IOMMU_TEST_OP_CREATE_ACCESS, v.ioas, (c) => {
    c.create_access.flags = u.MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES;
  });
  if (r.rec("IOMMU_TEST_OP_CREATE_ACCESS", { needs_pin: 1 }, test(ca)) === 0) throughAccess(r, v, d, test, ca.create_access.out_access_fd);
  v.close();
}

function throughAccess(r: Recorder, v: Env, d: number, test: (c: TestCmd) => number | Errno, af: number): void {
  const pin = (iova: bigint, length: bigint, flags: number, what: string): void => {
    const c = command(u.IOMMU_TEST_OP_ACCESS_PAGES, af, ({ access_pages: p }) => {
      Object.assign(p, { flags, iova, length, uptr: iova >= BARIOVA ? 0n : v.mem.address });
    });
    const result = test(c);
    r.rec("iommufd_access_pin_pages", { what, flags }, result);
    if (result instanceof Errno) return;
    test(
      command(u.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, af, (t) => {
        t.destroy_access_pages.access_pages_id = c.access_pages.out_access_pages_id;
      }),
    );
  };
  const rw = (iova: bigint, length: bigint, flags: number, what: string): void =>
    r.os.withMemory((allocate) => {
      const c = command(u.IOMMU_TEST_OP_ACCESS_RW, af, ({ access_rw: a }) => {
        Object.assign(a, { flags, iova, length, uptr: allocate(Number(length)).address });
      });
      r.rec("iommufd_access_rw", { what, flags }, test(c));
    });
  const WRITE = u.MOCK_FLAGS_ACCESS_WRITE;
  pin(MEMIOVA, 0x1000n, 0, "memfd area, flags 0");
  pin(BARIOVA, 0x1000n, 0, "dmabuf area read");
  pin(BARIOVA, 0x1000n, WRITE, "dmabuf area write");
  rw(MEMIOVA, 64n, 0, "memfd read");
  rw(BARIOVA, 64n, 0, "dmabuf read");
  rw(BARIOVA, 64n, u.MOCK_ACCESS_RW_WRITE, "dmabuf write");
  rw(BARIOVA, 64n, u.MOCK_ACCESS_RW_SLOW_PATH, "dmabuf read slow path");
  const ro = u.IOMMU_IOAS_MAP_READABLE | u.IOMMU_IOAS_MAP_FIXED_IOVA;
  r.mapFile(v.ifd, v.ioas, d, 0n, 0x1000n, BARIOVA + 0x100000n, ro, "ro dmabuf area");
  rw(BARIOVA + 0x100000n, 64n, u.MOCK_ACCESS_RW_WRITE, "write to ro dmabuf area");
  pin(BARIOVA + 0x100000n, 0x1000n, WRITE, "pin write of ro dmabuf area");

  const c = r.cfg16(v.x.fd, u.PCI_COMMAND);
  r.cfgw(v.x.fd, u.PCI_COMMAND, 2, c & ~u.PCI_COMMAND_MEMORY, "COMMAND.MEMORY=0");
  pin(BARIOVA, 0x1000n, 0, "revoked dmabuf area");
  rw(BARIOVA, 64n, 0, "revoked dmabuf read");
  r.cfgw(v.x.fd, u.PCI_COMMAND, 2, c, "COMMAND.MEMORY=1");
  r.unmap(v.ifd, v.ioas, BARIOVA, 0x4000n, "with an access on the ioas");

  r.mapFile(v.ifd, v.ioas, d, 0n, 0x4000n, BARIOVA, RWF, "dmabuf area (live)");
  const md = command(u.IOMMU_TEST_OP_MOCK_DOMAIN, v.ioas);
  if (r.rec("IOMMU_TEST_OP_MOCK_DOMAIN", { what: "on ioas with dmabuf area" }, test(md)) === 0) {
    r.destroy(v.ifd, md.mock_domain.out_stdev_id, "mock stdev");
  }
  r.os.close(af);
  testBuffer(r, v, test);
}

/** The test exporter's buffer on a real domain, revoked and brought back. */
function testBuffer(r: Recorder, v: Env, test: (c: TestCmd) => number | Errno): void {
  const get = command(u.IOMMU_TEST_OP_DMABUF_GET, 0, ({ dmabuf_get: g }) => {
    Object.assign(g, { length: 0x4000, open_flags: u.O_CLOEXEC });
  });
  const fd = r.rec("IOMMU_TEST_OP_DMABUF_GET", {}, test(get));
  if (fd <= 0) return;
  const map = (iova: bigint, what: string): unknown => r.mapFile(v.ifd, v.ioas, fd, 0n, 0x4000n, iova, RWF, what);
  const revoke = (revoked: number): number => {
    const c = command(u.IOMMU_TEST_OP_DMABUF_REVOKE, 0, ({ dmabuf_revoke: d }) => {
      Object.assign(d, { dmabuf_fd: fd, revoked });
    });
    return r.rec(`IOMMU_TEST_OP_DMABUF_REVOKE(${revoked})`, {}, test(c));
  };
  map(BARIOVA + 0x200000n, "test dmabuf on a VT-d domain");
  revoke(1);
  map(BARIOVA + 0x300000n, "revoked test dmabuf");
  revoke(0);
  map(BARIOVA + 0x300000n, "un-revoked test dmabuf");
}
