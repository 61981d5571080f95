/** The gates that keep the core pure must themselves be seen to close. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "..");
const made: string[] = [];

afterEach(() => {
  for (const d of made.splice(0)) rmSync(d, { recursive: true, force: true });
});

/** A throw-away folder inside a layer, with one file. */
function plant(layer: string, text: string): string {
  const dir = mkdtempSync(join(root, "src", layer, "planted-"));
  made.push(dir);
  const file = join(dir, "planted.ts");
  writeFileSync(file, text);
  return file;
}

const biome = (file: string): { status: number | null; output: string } => {
  const r = spawnSync(join(root, "node_modules/.bin/biome"), ["lint", file], { cwd: root, encoding: "utf8" });
  return { status: r.status, output: r.stdout + r.stderr };
};

const tsc = (file: string): string => {
  const layer = join(file, "..", "..");
  const config = join(file, "..", "tsconfig.json");
  writeFileSync(
    config,
    JSON.stringify({
      extends: join(layer, "tsconfig.json"),
      compilerOptions: { noEmit: true, composite: false, rootDir: layer },
      files: [file],
      references: [],
    }),
  );
  try {
    execFileSync(join(root, "node_modules/.bin/tsc"), ["-p", config], { cwd: root, encoding: "utf8" });
    return "";
  } catch (e) {
    return String((e as { stdout?: string }).stdout);
  }
};

describe("the core stays pure", () => {
  it.each([
    ["Math.random", "export const x: number = Math.random();\n"],
    ["Date.now", "export const x: number = Date.now();\n"],
    ["new Date", "export const x: Date = new Date(0);\n"],
  ])("a kernel file that calls %s is refused by the linter", (_name, text) => {
    const { status, output } = biome(plant("kernel", text));
    expect(output).toContain("pure code has no clock and no randomness");
    expect(status).not.toBe(0);
  });

  it.each([
    ["a Node module", 'import { readFileSync } from "node:fs";\nexport const x: unknown = readFileSync;\n', "node:fs"],
    ["a timer of the host", "export const x: unknown = setTimeout(() => {}, 1);\n", "setTimeout"],
    ["the console", 'console.log("x");\nexport {};\n', "console"],
    ["the DOM", "export const x: unknown = document;\n", "document"],
    ["a Buffer", "export const x: unknown = Buffer.alloc(1);\n", "Buffer"],
  ])("a kernel file that uses %s does not compile", (_name, text, named) => {
    expect(tsc(plant("kernel", text))).toContain(named);
  });

  it("a kernel file that imports the client is refused by the linter", () => {
    const { status, output } = biome(plant("kernel", 'export { Host } from "../../client/index.ts";\n'));
    expect(output).toContain("the kernel imports only the layers below it");
    expect(status).not.toBe(0);
  });
});
