/**
 * Bugs that the kernel's history knows, put back.
 *
 * A variant never changes the kernel's code: it is a subclass that an object of
 * the scenario is given (`become`), an operation in an ops object, an importer
 * of its own, or the scenario over kernel code in which the step is replaced
 * (`edited`). The same scenario without it is the fixed kernel.
 */
import { loadVariant, type Variant } from "../../../conformance/variant.ts";
import type { Scenario, Violation } from "../../../src/explore/index.ts";
import * as explore from "../../../src/explore/index.ts";

/** A scenario, and the explorer that knows its kernel. */
export interface Explorable {
  readonly scenario: Scenario;
  readonly explore: typeof explore;
}

export interface Bug {
  /** H1 … H24, with a letter where there are several forms. */
  readonly id: string;
  /** What was wrong, in a sentence. */
  readonly what: string;
  /** The scenario with the bug. */
  broken(): Explorable | Promise<Explorable>;
  /** The same on the code as it is, or with the cure that was adopted. */
  fixed(): Explorable;
  readonly kind: Violation["kind"];
  /** What the explorer says. */
  readonly says: RegExp;
}

/** Over the kernel as it is loaded. */
export const here = (scenario: Scenario): Explorable => ({ scenario, explore });

/** Over a kernel with other lines: `make` gets the exports of the module `entry`. */
export async function edited<M>(entry: string, edit: NonNullable<Variant["edit"]>, make: (module: M) => Scenario): Promise<Explorable> {
  const loaded = await loadVariant<M>(entry, { edit });
  return { scenario: make(loaded.entry), explore: loaded.explore };
}

/** Makes `target` an instance of a subclass of its class: what that overrides holds from here on. */
export function become<T extends object>(target: T, variant: { readonly prototype: T }): void {
  if (!Object.prototype.isPrototypeOf.call(Object.getPrototypeOf(target), variant.prototype)) {
    throw new TypeError(`a variant is no subclass of ${target.constructor.name}`);
  }
  Object.setPrototypeOf(target, variant.prototype);
}

/** Replaces some operations of an ops object that `holder` refers to. */
export function replaceOps<K extends string, O extends object>(holder: { readonly [P in K]: O }, key: K, ops: Partial<O>): void {
  Object.defineProperty(holder, key, { value: { ...holder[key], ...ops }, configurable: true });
}
