/**
 * Lock classes and the order in which they nest.
 *
 * Every lock belongs to a class. Taking B while A is held records the edge
 * A → B with the chain of classes that led there; an edge that closes a cycle
 * is a possible deadlock and is reported at once, with the acquisition chains
 * of both directions, whether or not this run would have deadlocked.
 *
 * A trylock cannot wait, so it adds no edge to itself; held, it is the source
 * of edges like any other. Two locks of one class nest only when the caller
 * says so (a subclass, or a ww acquire context).
 *
 * Source: the rules of Documentation/locking/lockdep-design.
 */
import { KernelBug } from "../lib/kernel_bug.ts";
import type { Task } from "./task.ts";

/** A class of locks, for all instances of one field. */
export class LockClass {
  readonly name: string;
  constructor(name: string) {
    this.name = name;
  }
}

export interface LockLike {
  readonly name: string;
  readonly lockClass: LockClass;
}

interface Edge {
  /** Classes held when the edge was first seen, outermost first, the new one last. */
  readonly chain: readonly string[];
  readonly task: string;
}

export class Lockdep {
  /** Off: nothing is recorded and nothing reported. */
  enabled = true;
  /** outer class → inner class → how it was first seen. */
  readonly #edges: Map<LockClass, Map<LockClass, Edge>> = new Map();
  /** Edges since `mark`: inner classes of one class, and which of them, in turn. */
  #since: (Map<LockClass, Edge> | LockClass)[] | undefined = undefined;

  /** Records that `task` is about to wait for `lock`. Throws `KernelBug` on a cycle. */
  acquire(task: Task, lock: LockLike, nested: boolean): void {
    if (!this.enabled) return;
    const to = lock.lockClass;
    for (const { lock: outer } of task.held) {
      const from = outer.lockClass;
      if (from === to) {
        if (nested) continue;
        throw new KernelBug(
          outer === lock
            ? `lockdep: ${task.name} takes ${lock.name} twice`
            : `lockdep: ${task.name} takes two locks of class ${to.name} (${outer.name}, ${lock.name}) without saying that they nest`,
        );
      }
      let inner = this.#edges.get(from);
      if (inner === undefined) {
        inner = new Map();
        this.#edges.set(from, inner);
      }
      if (inner.has(to)) continue;
      const back = this.#path(to, from);
      if (back !== undefined) throw new KernelBug(this.#report(task, from, to, back));
      inner.set(to, { chain: chainOf(task, to), task: task.name });
      this.#since?.push(inner, to);
    }
  }

  /** What is learned from here on can be forgotten again. */
  mark(): void {
    this.#since = [];
  }

  /** Forgets what was learned since `mark`. */
  rewind(): void {
    const since = this.#since ?? [];
    for (let i = 0; i < since.length; i += 2) (since[i] as Map<LockClass, Edge>).delete(since[i + 1] as LockClass);
    this.#since = [];
  }

  /** Every edge seen so far, `[outer, inner]`, in order of first sight per outer class. */
  edges(): [outer: string, inner: string][] {
    const out: [string, string][] = [];
    for (const [from, inner] of this.#edges) {
      for (const to of inner.keys()) out.push([from.name, to.name]);
    }
    return out;
  }

  /** Classes on a path from → … → to along recorded edges, or undefined. */
  #path(from: LockClass, to: LockClass): LockClass[] | undefined {
    const seen = new Set<LockClass>([from]);
    const walk = (at: LockClass): LockClass[] | undefined => {
      if (at === to) return [at];
      for (const next of this.#edges.get(at)?.keys() ?? []) {
        if (seen.has(next)) continue;
        seen.add(next);
        const rest = walk(next);
        if (rest !== undefined) return [at, ...rest];
      }
      return undefined;
    };
    return walk(from);
  }

  #report(task: Task, from: LockClass, to: LockClass, back: LockClass[]): string {
    const lines = [
      `lockdep: possible deadlock: ${task.name} takes ${to.name} while holding ${from.name}`,
      `  now:     ${chainOf(task, to).join(" → ")}  (${task.name})`,
    ];
    for (let i = 0; i + 1 < back.length; i++) {
      const a = back[i] as LockClass;
      const b = back[i + 1] as LockClass;
      const edge = this.#edges.get(a)?.get(b);
      if (edge !== undefined) lines.push(`  earlier: ${edge.chain.join(" → ")}  (${edge.task})`);
    }
    return lines.join("\n");
  }
}

function chainOf(task: Task, to: LockClass): string[] {
  return [...task.held.map((h) => h.lock.lockClass.name), to.name];
}
