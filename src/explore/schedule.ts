/**
 * A schedule as a short string: `a3bc2` is three steps of the first thread, one
 * of the second, two of the third. After the last the thread that ran goes on
 * while it can, then the lowest that can: the end of a schedule that holds no
 * choice need not be written.
 */

const LETTERS = "abcdefghijklmnopqrstuvwxyz";

export function formatSchedule(schedule: readonly number[]): string {
  let out = "";
  for (let i = 0; i < schedule.length; ) {
    const t = schedule[i] as number;
    let n = 1;
    while (schedule[i + n] === t) n++;
    const letter = LETTERS[t];
    if (letter === undefined) throw new RangeError(`thread ${t} has no letter`);
    out += n === 1 ? letter : `${letter}${n}`;
    i += n;
  }
  return out;
}

/** Throws RangeError for what is no schedule. */
export function parseSchedule(text: string): number[] {
  if (!/^(?:[a-z][0-9]{0,6})*$/.test(text))
    throw new RangeError(`"${text}" is no schedule: letters of threads, each with a count, as in a3bc2`);
  const out: number[] = [];
  for (const [, letter, n] of text.matchAll(/([a-z])([0-9]*)/g)) {
    for (let k = n === "" ? 1 : Number(n); k > 0; k--) out.push(LETTERS.indexOf(letter as string));
  }
  return out;
}

/** Who goes on when nothing says otherwise; `enabled` is not empty. */
export function goesOn(enabled: readonly number[], last: number | undefined): number {
  return last !== undefined && enabled.includes(last) ? last : (enabled[0] as number);
}

/** Times that a thread had to stop although it could have gone on, given what was enabled before each step. */
export function isPreemption(enabled: readonly number[], last: number | undefined, next: number): boolean {
  return last !== undefined && last !== next && enabled.includes(last);
}
