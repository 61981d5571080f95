import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { randomProgram } from "../../conformance/dpor.ts";
import { lastzero, readers } from "../../conformance/dpor_programs.ts";
import {
  abstractProgram,
  Campaign,
  type CampaignEntry,
  type CampaignHeader,
  cut,
  exploreOptimal,
  formatLine,
  lock,
  PartExplorer,
  type Program,
  parseCampaign,
  parseSchedule,
  replay,
  unlock,
} from "../../src/explore/index.ts";
import { Rng } from "../../src/lib/rng.ts";

const headerOf = (program: Program, parts: number, limit: number): CampaignHeader => ({
  campaign: program.name,
  barlink: "1.2.3",
  parts,
  limit,
});

/** All lines of a campaign that nothing disturbs. */
function undisturbed(program: Program, parts: number, limit: number): string[] {
  return goOn(new Campaign(headerOf(program, parts, limit)), program);
}

/** Takes a campaign to its end with one worker; the lines it writes. */
function goOn(campaign: Campaign, program: Program): string[] {
  const lines: string[] = [];
  cut(campaign, program, (entry) => lines.push(formatLine(entry)));
  const explorer = new PartExplorer(program);
  for (let part = campaign.take(); part !== undefined; part = campaign.take()) {
    const entry = explorer.explore(part, campaign.header.limit);
    expect(campaign.record(entry)).toBe(true);
    lines.push(formatLine(entry));
  }
  expect(campaign.finished).toBe(true);
  expect(campaign.share).toBe(1);
  return lines;
}

/** The campaign that the lines tell of. */
function campaignOf(program: Program, parts: number, limit: number, lines: readonly string[]): Campaign {
  const campaign = parseCampaign(formatLine(headerOf(program, parts, limit)) + lines.join(""));
  if (campaign === undefined) throw new Error("no campaign");
  return campaign;
}

describe("a campaign", () => {
  it("has every trace once, whatever the number of parts and wherever they are divided", () => {
    for (const [parts, limit] of [
      [1, 1],
      [1, 1000],
      [7, 3],
      [32, 20],
      [500, 1],
    ] as const) {
      // readers(n) has 2^n traces, lastzero(n) (n + 3) · 2^(n - 2).
      for (const [program, traces] of [
        [readers(7), 128],
        [lastzero(5), 64],
      ] as const) {
        const { totals } = campaignOf(program, parts, limit, undisturbed(program, parts, limit));
        expect(totals.executions).toBe(traces);
        expect([...totals.states.values()].reduce((a, b) => a + b)).toBe(traces);
      }
    }
  });

  it("ends in the states of the undivided search, each as often, over random programs with choices, locks and deadlocks", () => {
    const rng = new Rng(5);
    let divided = 0;
    for (let n = 0; n < 80; n++) {
      const program = randomProgram(rng);
      const states = new Map<string, number>();
      const whole = exploreOptimal(program, ({ outcome }, { executions }) => {
        states.set(outcome.state, (states.get(outcome.state) ?? 0) + 1);
        return outcome.violation !== undefined || executions > 400;
      });
      if (!whole.exhausted || whole.violations > 0) continue;
      const { totals } = campaignOf(program, 6, 5, undisturbed(program, 6, 5));
      expect(totals.violation).toBeUndefined();
      expect([...totals.states].sort()).toEqual([...states].sort());
      expect(totals.executions).toBe(whole.executions);
      if (totals.parts > 6) divided++;
    }
    expect(divided).toBeGreaterThan(5);
  });

  it("comes to the same with results in any order, workers that die, and results that come twice", () => {
    const program = lastzero(5);
    const expected = undisturbed(program, 6, 3);
    fc.assert(
      fc.property(fc.integer(), fc.integer({ min: 1, max: 5 }), (seed, workers) => {
        const rng = new Rng(seed >>> 0);
        const campaign = new Campaign(headerOf(program, 6, 3));
        const lines: string[] = [];
        cut(campaign, program, (entry) => lines.push(formatLine(entry)));
        const explorers = Array.from({ length: workers }, () => new PartExplorer(program));
        const inHand: CampaignEntry[] = [];
        let late: CampaignEntry | undefined;
        let share = 0;
        while (!campaign.finished) {
          while (campaign.outCount < workers) {
            const part = campaign.take();
            if (part === undefined) break;
            inHand.push((explorers[rng.below(workers)] as PartExplorer).explore(part, 3));
          }
          const [entry] = inHand.splice(rng.below(inHand.length), 1) as [CampaignEntry];
          if (rng.below(4) === 0) {
            // Who had it dies; or is thought dead, and brings it after all.
            campaign.giveBack(entry.part);
            late = entry;
            continue;
          }
          if (campaign.record(entry)) lines.push(formatLine(entry));
          if (late !== undefined && rng.below(3) === 0 && campaign.record(late)) lines.push(formatLine(late));
          expect(campaign.share).toBeGreaterThanOrEqual(share);
          share = campaign.share;
        }
        expect(lines.sort()).toEqual([...expected].sort());
        expect(campaign.totals.executions).toBe(64);
      }),
      { numRuns: 60 },
    );
  });

  it("goes on from any beginning of its journal, also from one that ends within a line", () => {
    const program = lastzero(5);
    const lines = undisturbed(program, 6, 3);
    const journal = formatLine(headerOf(program, 6, 3)) + lines.join("");
    for (let at = 0; at <= journal.length; at += at < 120 ? 1 : 149) {
      const known = journal.slice(0, at);
      const campaign = parseCampaign(known);
      if (campaign === undefined) {
        expect(known).not.toContain("\n");
        continue;
      }
      const before = known
        .slice(0, known.lastIndexOf("\n") + 1)
        .split(/(?<=\n)/)
        .slice(1);
      expect([...before, ...goOn(campaign, program)].sort()).toEqual([...lines].sort());
      expect(campaign.totals.executions).toBe(64);
    }
  });

  it("leaves a part at its first violation, and knows the shortest schedule to one", () => {
    const turned = abstractProgram("turned", 0, 2, [
      function* () {
        yield lock(0);
        yield lock(1);
        yield unlock(1);
        yield unlock(0);
      },
      function* () {
        yield lock(1);
        yield lock(0);
        yield unlock(0);
        yield unlock(1);
      },
    ]);
    const { totals } = campaignOf(turned, 4, 100, undisturbed(turned, 4, 100));
    expect(totals.violations).toBeGreaterThan(0);
    expect(totals.violation?.kind).toBe("deadlock");
    expect(replay(turned, parseSchedule(totals.violation?.schedule ?? "")).outcome.violation?.kind).toBe("deadlock");
  });

  it("does not take what is none of its own", () => {
    const program = lastzero(5);
    const campaign = campaignOf(program, 6, 3, undisturbed(program, 6, 3));
    const [settled] = campaign.settled;
    expect(() => campaign.record({ part: "9.9.9", split: 2 })).toThrow('the campaign has no part "9.9.9"');
    expect(() => campaign.record({ part: settled ?? "", split: 99 })).toThrow("the scenario has changed");
    expect(() => parseCampaign("Dear diary\n")).toThrow("line 1 is none of a campaign");
    expect(() => parseCampaign(`${formatLine(campaign.header)}{"part":"0","split":0}\n`)).toThrow("line 2: not what became of a part");
    expect(() => parseCampaign(`${formatLine(campaign.header)}{"part":"0","split":3}\n`)).toThrow('line 2: the campaign has no part "0"');
    // Another scenario's cuts.
    const other = campaignOf(readers(3), 6, 3, [formatLine({ part: "", split: 9 })]);
    expect(() => cut(other, readers(3), () => {})).toThrow("the scenario has changed");
  });
});
