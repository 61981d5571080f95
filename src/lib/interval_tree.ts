/**
 * Intervals [start, last] over the 64-bit space, in an augmented AVL tree.
 *
 * Nodes are intrusive: an area derives from `ItreeNode` and is its own node, so
 * that a million of them cost no second object. Both ends are inclusive and an
 * interval may reach 2^64 - 1; nothing here computes `last + 1`.
 *
 * Order is by `start`; equal starts keep the order of insertion. Intervals may
 * overlap and repeat. Each node also knows the largest `last` below it, as a
 * shared reference to some node's own BigInt, so that a search for an overlap
 * skips subtrees that end too early. The shape depends on the sequence of calls
 * alone, so a run replays exactly.
 *
 * `start` and `last` are fixed while a node is in a tree: remove it, change it,
 * insert it again.
 */
import { KernelBug } from "./kernel_bug.ts";

export abstract class ItreeNode {
  /** First value of the interval. */
  start: bigint;
  /** Last value of the interval, inclusive. */
  last: bigint;
  /** @internal */ itLeft: ItreeNode | undefined = undefined;
  /** @internal */ itRight: ItreeNode | undefined = undefined;
  /** @internal */ itParent: ItreeNode | undefined = undefined;
  /** Largest `last` of this subtree. @internal */
  itMax: bigint;
  /** Levels of this subtree; 0 while the node is in no tree. @internal */
  itHeight = 0;

  constructor(start: bigint, last: bigint) {
    this.start = start;
    this.last = last;
    this.itMax = last;
  }

  /** True while some tree holds it. */
  get inTree(): boolean {
    return this.itHeight !== 0;
  }
}

type N = ItreeNode | undefined;

const height = (n: N): number => (n === undefined ? 0 : n.itHeight);

/** Recomputes height and largest last from the children. */
function pull(n: ItreeNode): void {
  const l = n.itLeft;
  const r = n.itRight;
  const hl = height(l);
  const hr = height(r);
  n.itHeight = Math.max(hl, hr) + 1;
  let max = n.last;
  if (l !== undefined && l.itMax > max) max = l.itMax;
  if (r !== undefined && r.itMax > max) max = r.itMax;
  n.itMax = max;
}

/**
 * Lowest node of a subtree that meets [start, last]; the caller knows that some
 * node there ends at `start` or later (from.itMax ≥ start).
 *
 * It is the lowest node that ends late enough, if that begins early enough: all
 * after it begin later still. Where neither the left subtree nor the node ends
 * late enough the right one must, so nothing is compared for it.
 */
function lowestOverlap(from: ItreeNode, start: bigint, last: bigint): N {
  let n = from;
  for (;;) {
    const l = n.itLeft;
    if (l !== undefined && start <= l.itMax) n = l;
    else if (start <= n.last) return n.start <= last ? n : undefined;
    else n = n.itRight as ItreeNode;
  }
}

export class IntervalTree<T extends ItreeNode> {
  #root: N = undefined;
  #size = 0;

  get size(): number {
    return this.#size;
  }

  /** Adds a node that is in no tree. */
  insert(n: T): void {
    if (n.itHeight !== 0) throw new KernelBug("interval tree: the node is in a tree already");
    if (n.start > n.last) throw new RangeError(`interval tree: start ${n.start} lies past last ${n.last}`);
    n.itMax = n.last;
    n.itHeight = 1;
    this.#size++;
    let at = this.#root;
    if (at === undefined) {
      this.#root = n;
      return;
    }
    const { start, last } = n;
    for (;;) {
      if (last > at.itMax) at.itMax = last;
      if (start < at.start) {
        if (at.itLeft === undefined) {
          at.itLeft = n;
          break;
        }
        at = at.itLeft;
      } else {
        if (at.itRight === undefined) {
          at.itRight = n;
          break;
        }
        at = at.itRight;
      }
    }
    n.itParent = at;
    this.#settleInsert(at);
  }

  /** Takes out a node of this tree. */
  remove(n: T): void {
    if (n.itHeight === 0) throw new KernelBug("interval tree: the node is in no tree");
    this.#size--;
    let from: N;
    let moved: N;
    if (n.itLeft !== undefined && n.itRight !== undefined) {
      let next: ItreeNode = n.itRight;
      while (next.itLeft !== undefined) next = next.itLeft;
      if (next.itParent === n) {
        from = next;
      } else {
        from = next.itParent;
        this.#replace(next, next.itRight);
        next.itRight = n.itRight;
        next.itRight.itParent = next;
      }
      next.itLeft = n.itLeft;
      next.itLeft.itParent = next;
      this.#replace(n, next);
      // What the parent knew of this place was n's: settling compares against it.
      next.itHeight = n.itHeight;
      next.itMax = n.itMax;
      moved = next;
    } else {
      from = n.itParent;
      this.#replace(n, n.itLeft ?? n.itRight);
    }
    n.itLeft = undefined;
    n.itRight = undefined;
    n.itParent = undefined;
    n.itHeight = 0;
    this.#settleRemove(from, moved);
  }

  /** Lowest node that overlaps [start, last]. */
  first(start: bigint, last: bigint): T | undefined {
    const root = this.#root;
    if (root === undefined || start > root.itMax) return undefined;
    return lowestOverlap(root, start, last) as T | undefined;
  }

  /** The node after `n`, in order, that overlaps [start, last]. */
  next(n: T, start: bigint, last: bigint): T | undefined {
    let at: ItreeNode = n;
    for (;;) {
      const r = at.itRight;
      if (r !== undefined && start <= r.itMax) return lowestOverlap(r, start, last) as T | undefined;
      let child: ItreeNode;
      do {
        child = at;
        const up: N = at.itParent;
        if (up === undefined) return undefined;
        at = up;
      } while (at.itRight === child);
      if (at.start > last) return undefined;
      if (start <= at.last) return at as T;
    }
  }

  /** Every node that overlaps [start, last], in order. The loop may remove the node it was handed. */
  *overlaps(start: bigint, last: bigint): Generator<T, void, void> {
    let n = this.first(start, last);
    while (n !== undefined) {
      const following = this.next(n, start, last);
      yield n;
      n = following;
    }
  }

  /** Lowest node that contains `at`. */
  stab(at: bigint): T | undefined {
    return this.first(at, at);
  }

  /** Lowest node whose start is `at` or more. */
  firstFrom(at: bigint): T | undefined {
    let best: N;
    let n = this.#root;
    while (n !== undefined) {
      if (n.start >= at) {
        best = n;
        n = n.itLeft;
      } else {
        n = n.itRight;
      }
    }
    return best as T | undefined;
  }

  /** Highest node whose start is `at` or less. */
  lastUpTo(at: bigint): T | undefined {
    let best: N;
    let n = this.#root;
    while (n !== undefined) {
      if (n.start <= at) {
        best = n;
        n = n.itRight;
      } else {
        n = n.itLeft;
      }
    }
    return best as T | undefined;
  }

  /** Node of the smallest start. */
  get lowest(): T | undefined {
    let n = this.#root;
    while (n?.itLeft !== undefined) n = n.itLeft;
    return n as T | undefined;
  }

  /** The node after `n` in order. */
  successor(n: T): T | undefined {
    let at: ItreeNode = n;
    if (at.itRight !== undefined) {
      at = at.itRight;
      while (at.itLeft !== undefined) at = at.itLeft;
      return at as T;
    }
    let up = at.itParent;
    while (up !== undefined && up.itRight === at) {
      at = up;
      up = up.itParent;
    }
    return up as T | undefined;
  }

  /** All nodes in order. The loop may remove the node it was handed. */
  *[Symbol.iterator](): Generator<T, void, void> {
    let n = this.lowest;
    while (n !== undefined) {
      const following = this.successor(n);
      yield n;
      n = following;
    }
  }

  /** Throws `KernelBug` unless order, balance, links and largest lasts are as they should be. */
  check(): void {
    let count = 0;
    const walk = (n: N, parent: N): void => {
      if (n === undefined) return;
      count++;
      const { itMax, itHeight } = n;
      walk(n.itLeft, n);
      walk(n.itRight, n);
      pull(n);
      const wrong =
        n.itParent !== parent ||
        n.itHeight !== itHeight ||
        n.itMax !== itMax ||
        Math.abs(height(n.itLeft) - height(n.itRight)) > 1 ||
        (n.itLeft !== undefined && n.itLeft.start > n.start) ||
        (n.itRight !== undefined && n.itRight.start < n.start);
      if (wrong) throw new KernelBug(`interval tree: node [${n.start}, ${n.last}] is out of place`);
    };
    walk(this.#root, undefined);
    if (count !== this.#size) throw new KernelBug(`interval tree: ${count} nodes, size says ${this.#size}`);
  }

  /** Puts `by` where `n` hangs. */
  #replace(n: ItreeNode, by: N): void {
    const up = n.itParent;
    if (up === undefined) this.#root = by;
    else if (up.itLeft === n) up.itLeft = by;
    else up.itRight = by;
    if (by !== undefined) by.itParent = up;
  }

  /** Lifts `n`'s right child over it; returns the child. */
  #rotateLeft(n: ItreeNode, r: ItreeNode): ItreeNode {
    this.#replace(n, r);
    n.itRight = r.itLeft;
    if (n.itRight !== undefined) n.itRight.itParent = n;
    r.itLeft = n;
    n.itParent = r;
    pull(n);
    pull(r);
    return r;
  }

  /** Lifts `n`'s left child over it; returns the child. */
  #rotateRight(n: ItreeNode, l: ItreeNode): ItreeNode {
    this.#replace(n, l);
    n.itLeft = l.itRight;
    if (n.itLeft !== undefined) n.itLeft.itParent = n;
    l.itRight = n;
    n.itParent = l;
    pull(n);
    pull(l);
    return l;
  }

  /** Restores balance at `n`, whose children are right; returns the top of what was its subtree. */
  #balance(n: ItreeNode): ItreeNode {
    const l = n.itLeft;
    const r = n.itRight;
    const lean = height(l) - height(r);
    if (lean > 1 && l !== undefined) {
      const inner = l.itRight;
      if (inner !== undefined && height(l.itLeft) < inner.itHeight) return this.#rotateRight(n, this.#rotateLeft(l, inner));
      return this.#rotateRight(n, l);
    }
    if (lean < -1 && r !== undefined) {
      const inner = r.itLeft;
      if (inner !== undefined && height(r.itRight) < inner.itHeight) return this.#rotateLeft(n, this.#rotateRight(r, inner));
      return this.#rotateLeft(n, r);
    }
    return n;
  }

  /** The way down has raised the largest lasts already: only heights are left, and they settle early. */
  #settleInsert(from: ItreeNode): void {
    let n: N = from;
    while (n !== undefined) {
      const hl = height(n.itLeft);
      const hr = height(n.itRight);
      if (hl - hr > 1 || hr - hl > 1) {
        this.#balance(n);
        return;
      }
      const h = Math.max(hl, hr) + 1;
      if (h === n.itHeight) return;
      n.itHeight = h;
      n = n.itParent;
    }
  }

  /** Settles from `from` up, and at least to `moved`: a node that took another's place, with the other's height and largest last. */
  #settleRemove(from: N, moved: N): void {
    let n = from;
    let pending = moved !== undefined;
    while (n !== undefined) {
      if (n === moved) pending = false;
      const { itHeight, itMax } = n;
      pull(n);
      const top = this.#balance(n);
      if (!pending && top === n && n.itHeight === itHeight && n.itMax === itMax) return;
      n = top.itParent;
    }
  }
}
