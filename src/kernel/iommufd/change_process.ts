/**
 * IOMMU_IOAS_CHANGE_PROCESS: the caller becomes who the mappings are charged to.
 *
 * Only for contexts whose areas all show files: user memory would have to be at
 * the same address in the caller, and a dma-buf is charged to nobody.
 *
 * Copies share pages across IOASes, so every IOAS of the context is locked, in
 * id order, under the creation lock that keeps new ones out.
 * Source: drivers/iommu/iommufd/ioas.c.
 */
import { EBUSY, EINVAL, ENOMEM, EOPNOTSUPP, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { IommuIoasChangeProcess } from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import { type AccountMode, charge, uncharge } from "../mm/account.ts";
import { IommufdIoas } from "./ioas.ts";
import { decUsers } from "./object.ts";
import type { IoptPages } from "./pages.ts";
import { PagesSource } from "./source.ts";
import type { Ucmd } from "./ucmd.ts";

export function* changeProcess(ucmd: Ucmd, cmd: ViewOf<typeof IommuIoasChangeProcess>): Step<Errno | undefined> {
  if (cmd.__reserved !== 0) return EOPNOTSUPP;
  const { ctx } = ucmd;
  const locked: IommufdIoas[] = [];
  yield* ctx.ioasCreationLock.downWrite();
  try {
    for (const o of ctx.objects) {
      if (!(o instanceof IommufdIoas) || o.users === 0) continue;
      o.users++;
      yield* o.iopt.iovaSem.downWrite(true);
      locked.push(o);
      if (ctx.kernel.fault.slab("entry of ioas_list")) return ENOMEM;
    }
    return move(locked, PagesSource.of(ctx.kernel.current));
  } finally {
    for (const o of locked) {
      o.iopt.iovaSem.upWrite();
      decUsers(o);
    }
    ctx.ioasCreationLock.upWrite();
  }
}

/** Takes over the reference on `to`. */
function move(ioases: readonly IommufdIoas[], to: PagesSource): Errno | undefined {
  try {
    const all = new Set<IoptPages>();
    for (const ioas of ioases) {
      for (const area of ioas.iopt.areas) {
        if (area.pages === undefined) return EBUSY;
        if (area.pages.type !== "file") return EINVAL;
        all.add(area.pages);
      }
    }
    const e = chargeAll(all, to);
    if (e !== undefined) return e;
    for (const pages of all) {
      const from = pages.source;
      if (needsUpdate(pages, to)) uncharge(from, pages.accountMode, pages.npinned);
      pages.source = to.get();
      from.put();
    }
    return undefined;
  } finally {
    to.put();
  }
}

/** A charge to the user also counts in the mm, so a change of either moves it. */
function needsUpdate(pages: IoptPages, to: PagesSource): boolean {
  if (pages.npinned === 0 || pages.accountMode === "none") return false;
  return pages.source.mm !== to.mm || (pages.accountMode === "user" && pages.source.user !== to.user);
}

/** Charges the new owner with everything, mode by mode, or with nothing. */
function chargeAll(all: ReadonlySet<IoptPages>, to: PagesSource): Errno | undefined {
  const sums = new Map<AccountMode, number>();
  for (const pages of all) {
    if (pages.npinned !== pages.lastNpinned) throw new KernelBug("iommufd: a charge is not settled");
    if (needsUpdate(pages, to)) sums.set(pages.accountMode, (sums.get(pages.accountMode) ?? 0) + pages.npinned);
  }
  const done: [AccountMode, number][] = [];
  for (const mode of ["user", "mm"] as const) {
    const n = sums.get(mode) ?? 0;
    const e = n === 0 ? undefined : charge(to, mode, n);
    if (e !== undefined) {
      for (const [m, k] of done) uncharge(to, m, k);
      return e;
    }
    done.push([mode, n]);
  }
  return undefined;
}
