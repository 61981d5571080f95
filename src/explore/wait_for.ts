/** Who waits for whom, in words: the cycle if there is one, everybody who waits if not. */

export interface WaitFor {
  readonly waiter: string;
  readonly on: string;
  /** Empty for what nobody holds: an event that does not come. */
  readonly holders: readonly string[];
}

/** "a waits for X, held by b; b waits for Y, held by a". */
export function waitCycle(waits: readonly WaitFor[]): string {
  const by = new Map(waits.map((w) => [w.waiter, w]));
  for (const start of waits) {
    const path: WaitFor[] = [];
    for (let at: WaitFor | undefined = start; at !== undefined; at = at.holders.map((h) => by.get(h)).find((w) => w !== undefined)) {
      const again = path.indexOf(at);
      if (again >= 0) return path.slice(again).map(say).join("; ");
      path.push(at);
    }
  }
  return waits.map(say).join("; ");
}

const say = ({ waiter, on, holders }: WaitFor): string =>
  `${waiter} waits for ${on}${holders.length === 0 ? ", which nobody will bring" : `, held by ${holders.join(" and ")}`}`;
