/**
 * Bugs that the kernel's history knows, put back.
 *
 * A variant never changes the kernel's code: it is a subclass that an object of
 * the scenario is given (`become`), an operation in an ops object, or an
 * importer or exporter of its own. The same scenario without it is the fixed
 * kernel.
 */
import type { Scenario, Violation } from "../../../src/explore/index.ts";

export interface Bug {
  /** H1 … H24, with a letter where there are several forms. */
  readonly id: string;
  /** What was wrong, in a sentence. */
  readonly what: string;
  /** The scenario with the bug. */
  broken(): Scenario;
  /** The same on the code as it is, or with the cure that was adopted. */
  fixed(): Scenario;
  readonly kind: Violation["kind"];
  /** What the explorer says. */
  readonly says: RegExp;
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
