/**
 * A schedule as numbers and as a short string.
 *
 * As numbers: the thread of each step, and after a step that chose, for each of
 * its choices, -1 minus the value. Choices left out are 0, so a schedule written
 * by a strategy leaves out the zeros at the end of a step.
 *
 * As a string: `a3bc2` is three steps of the first thread, one of the second,
 * two of the third; `a3.1b` is the same three steps where the last of them
 * chooses 1, and `a.0.2` one step with two choices. A thread that was born
 * during the run is written after its parent: `aB` is the second child of `a`,
 * `aBA` that one's first. The passing of time is `@`, and what a timer starts is
 * its child. After the last letter the thread that ran goes on while it can,
 * then the lowest that can: the end of a schedule that holds no choice need not
 * be written.
 *
 * The number of a child follows from its birth: whoever replays a schedule in
 * another process calls it the same.
 */

const LETTERS = "abcdefghijklmnopqrstuvwxyz";
/** Threads that a scenario can name. */
export const NAMED: number = LETTERS.length;
/** The thread that is the passing of time. */
export const TIME: number = NAMED;
const FIRST_CHILD = NAMED + 1;

/** Number of the `nth` child, from 0, that a thread starts. */
export function childOf(parent: number, nth: number): number {
  const sum = parent + nth;
  const n = FIRST_CHILD + (sum * (sum + 1)) / 2 + nth;
  if (!Number.isSafeInteger(n)) throw new RangeError("threads are born too deep");
  return n;
}

/** Undoes `childOf`. */
function birthOf(thread: number): [parent: number, nth: number] {
  const k = thread - FIRST_CHILD;
  const sum = Math.floor((Math.sqrt(8 * k + 1) - 1) / 2);
  const nth = k - (sum * (sum + 1)) / 2;
  return [sum - nth, nth];
}

/** A thread as a schedule writes it. Throws RangeError for a number that is no thread's. */
export function threadName(thread: number): string {
  if (!Number.isSafeInteger(thread) || thread < 0) throw new RangeError(`thread ${thread} has no letter`);
  if (thread === TIME) return "@";
  if (thread < NAMED) return LETTERS[thread] as string;
  const [parent, nth] = birthOf(thread);
  const letter = LETTERS[nth]?.toUpperCase();
  if (letter === undefined) throw new RangeError(`child ${nth + 1} of ${threadName(parent)} has no letter`);
  return `${threadName(parent)}${letter}`;
}

function threadOf(name: string): number {
  let thread = name[0] === "@" ? TIME : LETTERS.indexOf(name[0] as string);
  for (const letter of name.slice(1)) thread = childOf(thread, LETTERS.indexOf(letter.toLowerCase()));
  return thread;
}

/** A step as a schedule says it. */
export interface Planned {
  readonly thread: number;
  /** What it chooses, in order; what is left out is 0. */
  readonly values: readonly number[];
}

/** Step by step. */
export function stepsOf(schedule: readonly number[]): Planned[] {
  const steps: { thread: number; values: number[] }[] = [];
  for (const n of schedule) {
    if (n >= 0) steps.push({ thread: n, values: [] });
    else if (steps.length === 0) throw new RangeError("a choice before the first step");
    else steps.at(-1)?.values.push(-1 - n);
  }
  return steps;
}

/** Puts a step at the end of a schedule. */
export function append(schedule: number[], thread: number, values: readonly number[]): void {
  schedule.push(thread);
  let n = values.length;
  while (n > 0 && values[n - 1] === 0) n--;
  for (let i = 0; i < n; i++) schedule.push(-1 - (values[i] as number));
}

/** Undoes `stepsOf`. */
export function scheduleOf(steps: readonly Planned[]): number[] {
  const out: number[] = [];
  for (const { thread, values } of steps) append(out, thread, values);
  return out;
}

export function formatSchedule(schedule: readonly number[]): string {
  let out = "";
  for (let i = 0; i < schedule.length; ) {
    const t = schedule[i] as number;
    let n = 1;
    while (schedule[i + n] === t) n++;
    out += n === 1 ? threadName(t) : `${threadName(t)}${n}`;
    i += n;
    for (let v = schedule[i]; v !== undefined && v < 0; v = schedule[++i]) out += `.${-1 - v}`;
  }
  return out;
}

/** Throws RangeError for what is no schedule. */
export function parseSchedule(text: string): number[] {
  if (!/^(?:[a-z@][A-Z]*[0-9]{0,6}(?:\.[0-9]{1,6})*)*$/.test(text)) {
    throw new RangeError(`"${text}" is no schedule: letters of threads, each with a count and what the last step chooses, as in a3bc2.1`);
  }
  const out: number[] = [];
  for (const [, name, n, values] of text.matchAll(/([a-z@][A-Z]*)([0-9]*)((?:\.[0-9]+)*)/g)) {
    const thread = threadOf(name as string);
    for (let k = n === "" ? 1 : Number(n); k > 0; k--) out.push(thread);
    for (const v of values?.split(".").slice(1) ?? []) out.push(-1 - Number(v));
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
