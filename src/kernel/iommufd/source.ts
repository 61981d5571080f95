/**
 * Who pages come from and are charged to: a process, its memory, its user.
 *
 * Every mapping of one process shares one of these, so that a million of them
 * do not hold three references each.
 *
 * Source: iopt_pages::source_mm, source_task, source_user.
 */
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Process, Rlimits, UserStruct } from "../fs/process.ts";
import type { AccountSource } from "../mm/account.ts";
import type { Mm } from "../mm/mm.ts";

const sources: WeakMap<Process, PagesSource> = new WeakMap();

export class PagesSource implements AccountSource {
  /** Whose limits apply. */
  readonly process: Process;
  readonly mm: Mm;
  readonly user: UserStruct;
  #refs = 0;

  private constructor(process: Process) {
    this.process = process;
    this.mm = process.mm.grab();
    this.user = process.creds.user;
  }

  /** The source that stands for a process now, with a reference. */
  static of(process: Process): PagesSource {
    let s = sources.get(process);
    if (s === undefined || s.mm !== process.mm || s.user !== process.creds.user) {
      s = new PagesSource(process);
      sources.set(process, s);
    }
    s.#refs++;
    return s;
  }

  get rlimits(): Readonly<Rlimits> {
    return this.process.rlimits;
  }

  get(): this {
    this.#refs++;
    return this;
  }

  put(): void {
    if (this.#refs <= 0) throw new KernelBug("a source of pages is put too often");
    this.#refs--;
    if (this.#refs > 0) return;
    if (sources.get(this.process) === this) sources.delete(this.process);
    this.mm.drop();
  }
}
