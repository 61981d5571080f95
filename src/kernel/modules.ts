/**
 * Which modules are loaded, and the symbols they lend.
 *
 * `symbol_get` is how iommufd reaches vfio-pci without depending on it: the
 * symbol may be absent, and its owner cannot be unloaded while it is held.
 * A symbol may be restricted to named modules (EXPORT_SYMBOL_FOR_MODULES).
 */
import { KernelBug } from "../lib/kernel_bug.ts";

interface ExportedSymbol {
  readonly owner: string;
  readonly value: unknown;
  /** Modules that may take it; undefined: all. */
  readonly forModules: readonly string[] | undefined;
}

export class Modules {
  readonly #symbols: Map<string, ExportedSymbol> = new Map();
  readonly #refs: Map<string, number> = new Map();
  readonly #loaded: Set<string> = new Set();

  load(module: string): void {
    this.#loaded.add(module);
  }

  has(module: string): boolean {
    return this.#loaded.has(module);
  }

  exportSymbol(owner: string, name: string, value: unknown, forModules?: readonly string[]): void {
    this.#symbols.set(name, { owner, value, forModules });
  }

  /** Takes the symbol and a reference on its owner; undefined when absent or not for `requester`. */
  symbolGet<T>(name: string, requester: string): T | undefined {
    const s = this.#symbols.get(name);
    if (s === undefined || !this.#loaded.has(s.owner)) return undefined;
    if (s.forModules !== undefined && !s.forModules.includes(requester)) return undefined;
    this.#refs.set(s.owner, this.refcount(s.owner) + 1);
    return s.value as T;
  }

  symbolPut(name: string): void {
    const s = this.#symbols.get(name);
    const n = s === undefined ? 0 : this.refcount(s.owner);
    if (s === undefined || n === 0) throw new KernelBug(`symbol_put(${name}) without symbol_get`);
    this.#refs.set(s.owner, n - 1);
  }

  /** A reference that keeps `module` loaded; false when it is not there, or on its way out. */
  tryGet(module: string): boolean {
    if (!this.#loaded.has(module)) return false;
    this.#refs.set(module, this.refcount(module) + 1);
    return true;
  }

  /** Undoes `tryGet`. */
  put(module: string): void {
    const n = this.refcount(module);
    if (n === 0) throw new KernelBug(`module_put(${module}) without a reference`);
    this.#refs.set(module, n - 1);
  }

  /** Takes a module out: its symbols can no longer be had. False while somebody holds it. */
  unload(module: string): boolean {
    if (this.refcount(module) > 0) return false;
    return this.#loaded.delete(module);
  }

  refcount(module: string): number {
    return this.#refs.get(module) ?? 0;
  }
}
