/**
 * Working directories inside the tree.
 *
 * The real kernel cannot be told to change into a folder that only we know, so
 * a chdir into the tree is kept here, by process, and every relative path and
 * getcwd of that process comes to us. A child has what its parent had when the
 * child was first seen. (fchdir needs no help: the descriptor is a real one.)
 */
import { readStatus } from "../../host/index.ts";

export class WorkingDirectories {
  /** Path in the tree, by process. */
  readonly #paths: Map<number, string> = new Map();
  /** A process has changed into one of our real directories: working directories must be looked at. */
  anyReal = false;

  /** A relative path may begin in the tree. */
  get any(): boolean {
    return this.anyReal || this.#paths.size > 0;
  }

  get(pid: number): string | undefined {
    return this.#paths.get(pid);
  }

  set(pid: number, path: string): void {
    this.#paths.set(pid, path);
  }

  forget(pid: number): void {
    this.#paths.delete(pid);
  }

  /** A process was first seen. */
  born(pid: number): void {
    if (this.#paths.size === 0) return;
    this.#paths.delete(pid);
    const parent = readStatus(pid)?.ppid;
    const path = parent === undefined ? undefined : this.#paths.get(parent);
    if (path !== undefined) this.#paths.set(pid, path);
  }
}
