import { describe, expect, it } from "vitest";
import { Host } from "../../src/client/index.ts";
import { formatEvent, type PerfettoEvent, PerfettoWriter, type TraceRecord } from "../../src/trace/index.ts";

/** Exports, maps, resets and closes on the recorded machine. */
function aRevoke(listen: (host: ReturnType<typeof Host.embedded>) => void): void {
  const host = Host.embedded("oracle");
  const iommufd = host.openIommufd();
  const engine = host.openDevice("0000:01:00.0").bind(iommufd);
  const peer = host.openDevice("0000:02:00.0").bind(iommufd);
  const ioas = iommufd.allocIoas();
  engine.attach(ioas);
  listen(host);
  const buffer = peer.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length: 0x4000n }] });
  ioas.mapFile(buffer, { length: 0x4000n, iova: 0x10000n });
  peer.reset();
  expect(host.shutdown()).toEqual({});
}

describe("a trace", () => {
  it("tells a revoke step by step, in the order in which Linux takes them", () => {
    const types: string[] = [];
    aRevoke((host) => host.onTrace((r) => types.push(r.event.type)));
    const steps = [
      "dma_buf.export",
      "dma_buf.attach",
      "dma_buf.private_map",
      "iommu.map",
      "dma_buf.revoke",
      "iommufd.revoke",
      "iommu.unmap",
      "iommu.flush",
      "pci.reset",
    ];
    let at = -1;
    for (const s of steps) {
      const next = types.indexOf(s, at + 1);
      expect(next, `${s} after ${types[at] ?? "the beginning"}`).toBeGreaterThan(at);
      at = next;
    }
  });

  it("numbers its records, and names the task and the virtual time of each", () => {
    const records: TraceRecord[] = [];
    aRevoke((host) => host.onTrace((r) => records.push(r)));
    expect(records.map((r) => r.seq)).toEqual(records.map((_, i) => i));
    expect(records[0]?.task).toBe("program");
    for (const [i, r] of records.entries()) expect(r.time).toBeGreaterThanOrEqual(records[i - 1]?.time ?? 0);
  });

  it("shows each lock that is taken released again, by the task that took it", () => {
    const held = new Map<string, number>();
    let taken = 0;
    aRevoke((host) =>
      host.onTrace(({ event, task }) => {
        if (event.type === "sched.lock") {
          taken++;
          held.set(`${task} ${event.lock}`, (held.get(`${task} ${event.lock}`) ?? 0) + 1);
        }
        if (event.type === "sched.unlock") held.set(`${task} ${event.lock}`, (held.get(`${task} ${event.lock}`) ?? 0) - 1);
      }),
    );
    expect(taken).toBeGreaterThan(20);
    expect([...held].filter(([, n]) => n !== 0)).toEqual([]);
  });

  it("costs nothing and says nothing once nobody listens", () => {
    const host = Host.embedded("oracle");
    let heard = 0;
    const stop = host.onTrace(() => heard++);
    stop();
    host.openIommufd().allocIoas();
    expect(heard).toBe(0);
    expect(host.kernel.trace.on).toBe(false);
    expect(host.kernel.sched.observer).toBeUndefined();
    expect(host.shutdown()).toEqual({});
  });

  it("prints an event on one line, addresses in hexadecimal", () => {
    const event = { type: "iommu.unmap", domain: 1, iova: 0x2000n, length: 0x1000n, unmapped: 0x1000n } as const;
    expect(formatEvent({ seq: 0, time: 0, task: "t", event })).toBe("iommu.unmap domain=1 iova=0x2000 length=0x1000 unmapped=0x1000");
    expect(formatEvent({ seq: 0, time: 0, task: "t", event: { type: "sched.printk", text: "as the log says it" } })).toBe(
      "as the log says it",
    );
  });
});

describe("a trace for Perfetto", () => {
  const written = (): PerfettoEvent[] => {
    const out: PerfettoEvent[] = [];
    const w = new PerfettoWriter((e) => out.push(e));
    aRevoke((host) => host.onTrace((r) => w.write(r)));
    return out;
  };

  it("is JSON in which every slice that opens on a track closes on it", () => {
    const events = JSON.parse(JSON.stringify(written())) as PerfettoEvent[];
    const open = new Map<number, string[]>();
    for (const e of events) {
      const stack = open.get(e.tid) ?? [];
      open.set(e.tid, stack);
      if (e.ph === "B") stack.push(e.name);
      if (e.ph === "E") expect(stack).toContain(e.name);
      if (e.ph === "E") stack.splice(stack.lastIndexOf(e.name), 1);
    }
    for (const stack of open.values()) expect(stack).toEqual([]);
  });

  it("has strictly increasing times, and a name for each track", () => {
    const events = written();
    const times = events.filter((e) => e.ph !== "M").map((e) => e.ts);
    for (const [i, t] of times.entries()) if (i > 0) expect(t).toBeGreaterThan(times[i - 1] as number);
    const named = new Set(events.filter((e) => e.name === "thread_name").map((e) => e.tid));
    for (const e of events) if (e.ph !== "M") expect(named).toContain(e.tid);
  });
});
