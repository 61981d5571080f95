/** How a suite counts what it compared, and prints it: by section, then in all. */
import type { Difference, KnownDifferences } from "./differences.ts";

interface Tally {
  agree: number;
  differ: number;
  /** Differ, as docs/differences.md says. */
  known: number;
  /** Recorded, and with no counterpart here. */
  missing: number;
}

export class Tallies {
  readonly #sections: Map<string, Tally> = new Map();

  #of(section: string): Tally {
    let t = this.#sections.get(section);
    if (t === undefined) {
      t = { agree: 0, differ: 0, known: 0, missing: 0 };
      this.#sections.set(section, t);
    }
    return t;
  }

  missing(section: string): void {
    this.#of(section).missing++;
  }

  /** Counts one comparison; what it differs in beyond the documented, a line each after `who`. */
  judge(section: string, differences: readonly Difference[], known: KnownDifferences, who: string): string[] {
    const t = this.#of(section);
    const unknown = differences.filter((d) => !known.has(d));
    if (differences.length === 0) t.agree++;
    else if (unknown.length === 0) t.known++;
    else t.differ++;
    return unknown.map((d) => `${who}: ${d.call} "${d.what}": ${d.field} is ${d.want} on Linux, ${d.got} here`);
  }

  /** Prints the table, the sum (`what` was counted), and the lines. */
  report(suite: string, what: string, lines: readonly string[]): void {
    const row = (name: string, ...cells: (string | number)[]): void => {
      const widths = [7, 8, 12, 13];
      process.stdout.write(`${name.padEnd(20)}${cells.map((c, i) => String(c).padStart(widths[i] ?? 0)).join("")}\n`);
    };
    const total: Tally = { agree: 0, differ: 0, known: 0, missing: 0 };
    row("section", "agree", "differ", "documented", "not covered");
    for (const [name, t] of this.#sections) {
      row(name, t.agree, t.differ, t.known, t.missing);
      for (const k of ["agree", "differ", "known", "missing"] as const) total[k] += t[k];
    }
    row("total", total.agree, total.differ, total.known, total.missing);
    const covered = total.agree + total.differ + total.known;
    process.stdout.write(
      `${suite}: ${covered} of ${covered + total.missing} ${what}, ${total.agree} agree, ${total.known} differ as documented\n`,
    );
    for (const l of lines) process.stdout.write(`${l}\n`);
  }
}
