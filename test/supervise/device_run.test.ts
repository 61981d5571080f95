/** A VFIO program in C under `barlink run`: BARs, mapped and by calls, from one end to the other. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LAZY_MS } from "../../src/supervise/doorbells.ts";
import { DeviceProgram } from "./device_program.ts";

const program = new DeviceProgram();
afterAll(() => program.remove());

describe.skipIf(!program.built)("a program that drives devices", () => {
  let memory: Record<string, string>;
  beforeAll(() => {
    memory = program.lines(["memory"]);
  }, 120_000);

  it.each([
    ["map past the end", "EINVAL"],
    ["map private", "EINVAL"],
    ["map at offset 0", "EINVAL"],
    ["map private at offset 0", "EINVAL"],
    ["map config space", "EINVAL"],
    ["ftruncate", "EINVAL"],
    ["fallocate", "ENODEV"],
    ["grow", "EFAULT"],
  ])("is refused what Linux refuses: %s", (what, error) => {
    expect(memory[what]).toBe(error);
  });

  it("maps a BAR, whole and in part, and sees the same through pread, pwrite and preadv", () => {
    expect(memory.map).toBe("ok ok");
    expect(memory["pread 8"]).toBe("1122334455667788");
    expect(memory["pwrite 8"]).toBe("0xabcdef");
    expect(memory["preadv 5"]).toBe("88 77");
  });

  it("gets SIGBUS while memory is off, whoever turned it off, and its bytes back after that", () => {
    expect(memory["without memory"]).toBe("SIGBUS SIGBUS");
    expect(memory["pread without memory"]).toBe("EIO");
    expect(memory["with memory"]).toBe("0x1122334455667788 0x1122334455667788");
    expect(memory.reset).toBe("ok, then 0x1122334455667788");
    expect(memory["after a child turned it off"]).toBe("SIGBUS");
    expect(memory["what the child stored"]).toBe("0x5");
  });

  it("keeps its mapping past the close, and finds the device's memory when it opens it again", () => {
    expect(memory["after close"]).toBe("0x5");
    expect(memory["opened again"]).toBe("8 5");
  });

  it("is told that registers cannot be mapped when it shall use calls, which are exact", () => {
    const exact = program.lines(["registers"], ["--no-register-maps"]);
    expect(exact).toEqual({ "region flags": "3", map: "EINVAL", factorial: "120" });
    expect(program.lines(["registers"])).toEqual({ "region flags": "7", map: "ok", factorial: "120" });
  });

  it("reaches registers through the mapping in time", () => {
    const out = program.output(["latency", "40", "20000"]);
    const [median] = (/latency_us (\d+)/.exec(out) ?? []).slice(1).map(Number);
    expect(median).toBeGreaterThan(0);
    // Alone on the machine it is below 2 ms; other work may take its time.
    expect(median).toBeLessThan((LAZY_MS + 100) * 1000);
  });
});
