import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { Kernel } from "../../src/kernel/kernel.ts";
import { vfioOf } from "../../src/kernel/vfio/vfio_main.ts";
import { boot } from "../../src/machine/boot.ts";
import { parseMachine } from "../../src/machine/schema.ts";
import { modeOf, type Node } from "../../src/supervise/tree/node.ts";
import { Tree } from "../../src/supervise/tree/tree.ts";

interface Recorded {
  readonly path: string;
  readonly mode?: string;
  readonly size?: number;
  readonly link?: string;
  readonly rdev?: string;
  readonly text?: string;
  readonly open?: string;
  readonly read?: string;
}

function jsonLines<T>(name: string): T[] {
  const text = readFileSync(new URL(`../data/sysfs/${name}`, import.meta.url), "utf8");
  return text
    .trimEnd()
    .split("\n")
    .map((l) => JSON.parse(l) as T);
}

function oracleMachine(): Kernel {
  const path = new URL("../../machines/oracle.json", import.meta.url);
  return boot(parseMachine(JSON.parse(readFileSync(path, "utf8"))));
}

const shown = (node: Node): string | undefined => {
  if (node.kind !== "file" || node.show === undefined) return undefined;
  const s = node.show();
  return typeof s === "string" ? s : undefined;
};

/** The machine of the record has more functions than ours: its groups and cdevs have other numbers. Ours are put in their places. */
function renumbering(kernel: Kernel, records: Recorded[]): Recorded[] {
  const groups = new Map<string, string>();
  const cdevs = new Map<string, string>();
  for (const r of records) {
    const bdf = /\/([^/]+)\/iommu_group$/.exec(r.path)?.[1];
    const group = bdf === undefined ? undefined : kernel.pci.devices.get(bdf)?.iommuGroup?.id;
    if (group !== undefined) groups.set(r.link?.split("/").at(-1) ?? "", `${group}`);
    const [, name] = /^\/sys\/class\/vfio-dev\/(vfio\d+)$/.exec(r.path) ?? [];
    const owner = r.link?.split("/").at(-3);
    const ours = name === undefined || owner === undefined ? undefined : vfioOf(kernel).cdevPathOf(owner);
    if (name !== undefined && ours !== undefined) cdevs.set(name, ours.split("/").at(-1) as string);
  }
  const swap = (text: string): string =>
    text
      .replace(/(iommu_groups\/|\/vfio\/)(\d+)\b/g, (_, before: string, n: string) => before + (groups.get(n) ?? `none${n}`))
      .replace(/\bvfio\d+\b/g, (n) => cdevs.get(n) ?? n);
  return records.map((r) => ({ ...r, path: swap(r.path), ...(r.link === undefined ? {} : { link: swap(r.link) }) }));
}

/** Where the two differ, and why. */
const ABSENT: readonly [RegExp, string][] = [
  [/autosuspend_delay_ms$/, "a read fails with EIO on Linux; a file of ours cannot"],
  [/\/power\/(wakeup|runtime_.*_time)/, "times since boot, and wakeup sources, of which there are none here"],
  [/\/link(\/|$)/, "link power management"],
  [/(max|current)_link_(speed|width)$/, "the models have no links"],
  [
    /^\/dev\/vfio\/(\d+|vfio)$|\/virtual\/(vfio\/\d+|misc\/vfio)|\/class\/(vfio\/\d+|misc\/vfio)/,
    "groups and containers are there when that part of VFIO is loaded",
  ],
  [/^\/sys\/module\/(vfio_iommu_type1|udmabuf)/, "the same; udmabuf's limits are not parameters here"],
  [/^\/sys\/(devices\/pci0000:00\/(power|uevent|waiting_for_supplier)|bus\/pci\/drivers\/pcieport\/)/, "the host bridge is no device here"],
  [/QEMU0002|iommu_groups\/none/, "the host bridge and the chipset's functions are not there"],
  [/pci0000:00\/0000:00:0\d\.0\/resource0$/, "ports have no BAR of their own"],
  [/domains_used$/, "a count that depends on the machine's other devices"],
];

const OTHER_TEXT: readonly [RegExp, string][] = [
  [/\/(irq|local_cpus|local_cpulist|resource)$/, "another firmware, one processor"],
  [/\/(dev|uevent)$/, "dynamic numbers"],
  [/:0\d\.0\/(d3cold_allowed|modalias|subsystem_vendor)$/, "of ports: QEMU's say whose subsystem they are and have no power management"],
  [/runtime_status$/, "of ports: nobody has let them sleep"],
];

describe("the rendered tree against the recorded one", () => {
  const kernel = oracleMachine();
  kernel.sched.settle();
  const tree = new Tree(kernel);
  const renumbered = renumbering(kernel, jsonLines<Recorded>("tree.jsonl"));
  const recorded = renumbered.filter(
    (r) => r.mode !== undefined && !/^\/sys\/(devices\/virtual\/(misc|dma_heap)|class\/(misc|dma_heap))$/.test(r.path),
  );

  it("has every file that Linux has, but for those with a reason", () => {
    const missing = recorded.filter((r) => tree.lookup(r.path) === undefined && !ABSENT.some(([p]) => p.test(r.path)));
    expect(missing.map((r) => r.path)).toEqual([]);
  });

  it("gives each the kind, permissions and size of Linux's", () => {
    for (const r of recorded) {
      const node = tree.lookup(r.path);
      if (node === undefined || r.path.endsWith("/config")) continue;
      expect(`${r.path} ${modeOf(node).toString(8)}`).toBe(`${r.path} ${r.mode}`);
      if (node.kind === "file" && !/resource\d$/.test(r.path)) expect(`${r.path} ${node.size}`).toBe(`${r.path} ${r.size}`);
      if (node.kind === "link") expect(`${r.path} ${node.text}`).toBe(`${r.path} ${r.link}`);
    }
  });

  it("says in each what Linux says", () => {
    const differs: string[] = [];
    for (const r of recorded) {
      const node = tree.lookup(r.path);
      if (node === undefined || r.text === undefined || OTHER_TEXT.some(([p]) => p.test(r.path))) continue;
      const text = shown(node);
      if (text !== undefined && text !== r.text) differs.push(`${r.path}: ${JSON.stringify(text)}, Linux ${JSON.stringify(r.text)}`);
    }
    expect(differs).toEqual([]);
  });
});
