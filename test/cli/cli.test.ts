/** The command as a user meets it: its output, its errors, its exit status. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "..", "..");
const barlink = (...args: string[]): { status: number | null; out: string; err: string } => {
  const r = spawnSync(process.execPath, [join(root, "dist/cli/main.js"), ...args], {
    encoding: "utf8",
    env: { ...process.env, FORCE_COLOR: undefined },
  });
  return { status: r.status, out: r.stdout, err: r.stderr };
};

let dir = "";
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "barlink-test-"));
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe("barlink tour", () => {
  it("shows the whole path with real values, finds that everything holds, and ends with 0", () => {
    const { status, out, err } = barlink("tour");
    expect(err).toBe("");
    expect(status).toBe(0);
    expect(out).not.toContain("\u001b");
    expect(out).not.toContain("✗");
    for (const said of [
      /VFIO_DEVICE_BIND_IOMMUFD\(0000:01:00\.0\) = 0, device id 1/,
      /physical range +0x[0-9a-f]+–0x[0-9a-f]+/,
      /entry bytes +([0-9a-f]{2} ){7}[0-9a-f]{2}/,
      /all 256 bytes landed/,
      /DMAR: \[DMA Write NO_PASID\] Request device \[0000:01:00\.0\] fault addr 0x2000000/,
      /MAP_FILE\(.*\) = -1 ENODEV/,
      /no file, pin, attachment or registration is left/,
      /Everything held\./,
    ]) {
      expect(out).toMatch(said);
    }
    expect(out.match(/all 256 bytes landed/g)).toHaveLength(2);
  });

  it("holds on a machine whose interconnect is negotiated too", () => {
    const { status, out } = barlink("tour", "--machine", "negotiated");
    expect(out).not.toContain("✗");
    expect([status, out.includes("Everything held.")]).toEqual([0, true]);
  });

  it("on an AMD machine shows that unit's entries and faults", () => {
    const file = join(dir, "amd.json");
    writeFileSync(
      file,
      JSON.stringify({
        name: "amd",
        iommu: { kind: "amd" },
        pci: {
          children: ["edu", "nvme"].map((model) => ({
            type: "root-port",
            acs: ["SV", "RR", "CR", "UF"],
            children: [{ type: "device", model }],
          })),
        },
      }),
    );
    const { status, out } = barlink("tour", "--machine", file);
    expect(out).not.toContain("✗");
    expect(out).toMatch(/AMD-Vi: .*IO_PAGE_FAULT/);
    expect(status).toBe(0);
  });
});

describe("a user's mistake", () => {
  it.each([
    ["an unknown command", ["fly"], /unknown command 'fly'/],
    ["an unknown option", ["tour", "--fast"], /unknown option '--fast'/],
    [
      "a machine that is not there",
      ["tour", "--machine", "/nonexistent.json"],
      /cannot be read: give a JSON file, or one of the names default, negotiated, oracle/,
    ],
    ["a missing argument", ["machine", "check"], /missing required argument 'file'/],
  ])("such as %s is told in a line, without a stack, and ends with 2", (_name, args, message) => {
    const { status, err } = barlink(...args);
    expect(err).toMatch(message);
    expect(err).not.toMatch(/\n\s+at /);
    expect(status).toBe(2);
  });

  it("in a machine file is named by its path", () => {
    const file = join(dir, "bad.json");
    writeFileSync(file, JSON.stringify({ name: "bad", iommu: { kind: "intel-legacy", addressWidth: 40 }, pci: { children: [] } }));
    const { status, err } = barlink("machine", "check", file);
    expect(err).toMatch(/iommu\.addressWidth/);
    expect(status).toBe(2);
  });
});

describe("barlink machine", () => {
  it("check lists the devices of a machine with their groups, drivers and BARs", () => {
    const { status, out } = barlink("machine", "check", "oracle");
    expect(status).toBe(0);
    expect(out).toMatch(/0000:01:00\.0 {2}1234:11e8 {2}group \d+ +vfio-pci +edu/);
    expect(out).toMatch(/BAR 2: 0x[0-9a-f]+, 0x1000000 bytes, prefetchable/);
  });

  it("schema prints a JSON Schema", () => {
    const { status, out } = barlink("machine", "schema");
    expect(status).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ $schema: expect.stringContaining("json-schema.org") });
  });
});

describe("barlink --help", () => {
  it("lists the commands and ends with 0", () => {
    const { status, out } = barlink("--help");
    expect(out).toMatch(/tour/);
    expect(status).toBe(0);
  });
});
