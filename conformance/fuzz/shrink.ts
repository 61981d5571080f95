/**
 * The smallest sequence that still shows something: calls are left out in ever
 * smaller pieces while it does.
 *
 * `shows` judges many candidates at once, because a Linux that answers them
 * takes long to start and little for each.
 */
import type { Call, Sequence } from "./program.ts";

export type Judge = (candidates: readonly Sequence[]) => boolean[] | Promise<boolean[]>;

const without = (s: Sequence, drop: (i: number, c: Call) => boolean): Sequence => ({
  name: s.name,
  calls: s.calls.filter((c, i) => c.needed === true || !drop(i, c)),
});

/** `s` shows it; `kept` stays, and so does what has to be undone. */
export async function shrink(s: Sequence, kept: Call | undefined, shows: Judge): Promise<Sequence> {
  let best = s;
  for (let piece = Math.ceil(best.calls.length / 2); ; ) {
    const { length } = best.calls;
    const pieces = Array.from({ length: Math.ceil(length / piece) }, (_, k) => k * piece);
    const cut = (at: number, i: number, c: Call): boolean => i >= at && i < at + piece && c !== kept;
    const candidates = pieces.map((at) => without(best, (i, c) => cut(at, i, c)));
    // What cuts nothing is not asked about.
    const real = pieces.filter((_, k) => (candidates[k]?.calls.length ?? length) < length);
    const asked = candidates.filter((c) => c.calls.length < length);
    const verdicts = asked.length === 0 ? [] : await shows(asked);
    const first = asked[verdicts.indexOf(true)];
    if (first === undefined) {
      if (piece === 1) return best;
      piece = Math.ceil(piece / 2);
      continue;
    }
    // Pieces that can go one by one can mostly go together.
    const free = real.filter((_, k) => verdicts[k] === true);
    const all = without(best, (i, c) => free.some((at) => cut(at, i, c)));
    best = free.length > 1 && (await shows([all]))[0] === true ? all : first;
    piece = Math.min(piece, Math.max(1, Math.ceil(best.calls.length / 2)));
  }
}
