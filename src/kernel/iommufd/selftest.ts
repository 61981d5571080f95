/**
 * IOMMU_TEST_CMD: what the kernel's own iommufd selftests ask of a kernel built
 * for them. A machine has it when it is booted with `selftest`.
 *
 * Source: iommufd_test() in drivers/iommu/iommufd/selftest.c.
 */

import { U64_MAX } from "../../lib/addr.ts";
import { EINVAL, EOPNOTSUPP, EOVERFLOW, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import type { IommuIoasCopy } from "../../uapi/iommufd.ts";
import * as T from "../../uapi/iommufd_test.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import { MockIommu } from "../iommu/mock.ts";
import type { Kernel } from "../kernel.ts";
import type { IommufdCtx } from "./ctx.ts";
import { IommufdIoas } from "./ioas.ts";
import { type IommufdSelftest, iommufdModule, SELFTEST_RESERVATION } from "./module.ts";
import { getObject, putObject } from "./object.ts";
import { accessPages, accessReplaceIoas, accessRw, createAccess, destroyAccessPages, fuzzedIova } from "./selftest_access.ts";
import { checkDirty, checkIotlb, checkMap, checkRefs } from "./selftest_check.ts";
import { checkDevCache, mockDomain, mockDomainReplace, pasidAttach, pasidCheckHwpt, pasidDetach, pasidReplace } from "./selftest_device.ts";
import { testDmabufGet, testDmabufMap, testDmabufRevoke } from "./selftest_dmabuf.ts";
import { triggerIopf, triggerVevent } from "./selftest_event.ts";
import type { Ucmd } from "./ucmd.ts";

type TestCmd = ViewOf<typeof T.IommuTestCmd>;

/** Less memory than this would not hold one run of pages. */
const LEAST_MEMORY = 12;

/** Adds the selftest to a loaded iommufd. */
export function iommufdSelftestInit(kernel: Kernel): void {
  const unit = new MockIommu(kernel);
  kernel.leakChecks.set("iommufd mock device", () => unit.devices);
  iommufdModule(kernel).selftest = {
    execute: (ucmd, cmd) => execute(unit, ucmd, cmd),
    convertCopy,
    privateMap: testDmabufMap,
  } satisfies IommufdSelftest;
}

function* execute(unit: MockIommu, ucmd: Ucmd, cmd: TestCmd): Step<Errno | number | undefined> {
  switch (cmd.op) {
    case T.IOMMU_TEST_OP_ADD_RESERVED:
      return yield* addReserved(ucmd.ctx, cmd.id, cmd.add_reserved.start, cmd.add_reserved.length);
    case T.IOMMU_TEST_OP_MOCK_DOMAIN:
      return yield* mockDomain(unit, ucmd, cmd, 0);
    case T.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS:
      return yield* mockDomain(unit, ucmd, cmd, cmd.mock_domain_flags.dev_flags);
    case T.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE:
      return yield* mockDomainReplace(ucmd, cmd);
    case T.IOMMU_TEST_OP_MD_CHECK_MAP:
      return yield* checkMap(ucmd.ctx, cmd.id, cmd.check_map);
    case T.IOMMU_TEST_OP_MD_CHECK_REFS:
      return checkRefs(ucmd.ctx, cmd.check_refs);
    case T.IOMMU_TEST_OP_MD_CHECK_IOTLB:
      return checkIotlb(ucmd.ctx, cmd.id, cmd.check_iotlb);
    case T.IOMMU_TEST_OP_DEV_CHECK_CACHE:
      return checkDevCache(ucmd.ctx, cmd.id, cmd.check_dev_cache);
    case T.IOMMU_TEST_OP_CREATE_ACCESS:
      return yield* createAccess(ucmd, cmd);
    case T.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS:
      return yield* accessReplaceIoas(ucmd.ctx, cmd.id, cmd.access_replace_ioas.ioas_id);
    case T.IOMMU_TEST_OP_ACCESS_PAGES:
      return yield* accessPages(ucmd, cmd);
    case T.IOMMU_TEST_OP_ACCESS_RW:
      return yield* accessRw(ucmd.ctx, cmd.id, cmd.access_rw);
    case T.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES:
      return yield* destroyAccessPages(ucmd.ctx, cmd.id, cmd.destroy_access_pages.access_pages_id);
    case T.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT:
      // Pages go into domains without memory set aside for it: there is nothing to limit.
      return cmd.memory_limit.limit < LEAST_MEMORY ? EINVAL : undefined;
    case T.IOMMU_TEST_OP_DIRTY:
      return yield* checkDirty(ucmd, cmd);
    case T.IOMMU_TEST_OP_TRIGGER_IOPF:
      return yield* triggerIopf(ucmd.ctx, cmd.trigger_iopf);
    case T.IOMMU_TEST_OP_TRIGGER_VEVENT:
      return yield* triggerVevent(ucmd.ctx, cmd.trigger_vevent.dev_id);
    case T.IOMMU_TEST_OP_PASID_ATTACH:
      return yield* pasidAttach(ucmd, cmd);
    case T.IOMMU_TEST_OP_PASID_REPLACE:
      return yield* pasidReplace(ucmd, cmd);
    case T.IOMMU_TEST_OP_PASID_DETACH:
      return yield* pasidDetach(ucmd.ctx, cmd.id, cmd.pasid_detach.pasid);
    case T.IOMMU_TEST_OP_PASID_CHECK_HWPT:
      return pasidCheckHwpt(ucmd.ctx, cmd.id, cmd.pasid_check);
    case T.IOMMU_TEST_OP_DMABUF_GET:
      return testDmabufGet(ucmd.ctx.kernel, cmd.dmabuf_get.length, cmd.dmabuf_get.open_flags);
    case T.IOMMU_TEST_OP_DMABUF_REVOKE:
      return yield* testDmabufRevoke(ucmd.ctx.kernel, cmd.dmabuf_revoke.dmabuf_fd, cmd.dmabuf_revoke.revoked !== 0);
    default:
      return EOPNOTSUPP;
  }
}

/** As for an access (`fuzzedIova`). The flag is taken away, also when there is no such IOAS. */
function* convertCopy(ctx: IommufdCtx, cmd: ViewOf<typeof IommuIoasCopy>): Step<void> {
  if ((cmd.flags & T.MOCK_FLAGS_ACCESS_SYZ) === 0) return;
  cmd.flags &= ~T.MOCK_FLAGS_ACCESS_SYZ;
  const ioas = getObject(ctx, cmd.src_ioas_id, IommufdIoas);
  if (ioas instanceof Errno) return;
  cmd.src_iova = yield* fuzzedIova(ioas.iopt, cmd.src_iova);
  putObject(ctx, ioas);
}

/** One more range of IOVA that cannot be mapped, until the IOAS goes. */
function* addReserved(ctx: IommufdCtx, ioasId: number, start: bigint, length: bigint): Step<Errno | undefined> {
  if (length === 0n) return EINVAL;
  const last = start + length - 1n;
  if (last > U64_MAX) return EOVERFLOW;
  const ioas = getObject(ctx, ioasId, IommufdIoas);
  if (ioas instanceof Errno) return ioas;
  yield* ioas.iopt.iovaSem.downWrite();
  const e = ioas.iopt.reserve(start, last, SELFTEST_RESERVATION);
  ioas.iopt.iovaSem.upWrite();
  putObject(ctx, ioas);
  return e;
}
