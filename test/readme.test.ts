/** What the README says must be so. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { CallError, EmbeddedHost, Host } from "../src/client/index.ts";
import { parseMachine } from "../src/machine/index.ts";

const root = join(import.meta.dirname, "..");
const readme = readFileSync(join(root, "README.md"), "utf8");
const blocks = (language: string): string[] =>
  [...readme.matchAll(new RegExp(`\`\`\`${language}\\n([\\s\\S]*?)\`\`\``, "g"))].map((m) => m[1] as string);

describe("the README", () => {
  it("embeds a program that runs, and leaves nothing behind", () => {
    const program = blocks("ts").find((b) => b.includes("Host.embedded")) ?? "";
    const body = program.replace(/^import .*$/gm, "");
    let host: EmbeddedHost | undefined;
    const Booting = { embedded: (machine: string) => (host = Host.embedded(machine)) };
    new Function("assert", "CallError", "Host", body)(assert, CallError, Booting);
    expect(host?.shutdown()).toEqual({});
  });

  it("describes a machine that boots", () => {
    const text = blocks("json")[0] ?? "";
    const host = EmbeddedHost.boot(parseMachine(JSON.parse(text)));
    expect(host.devices).toEqual(["0000:00:00.0", "0000:00:01.0", "0000:01:00.0", "0000:02:00.0"]);
    expect(host.shutdown()).toEqual({});
  });

  it.each(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/differences.md", "src/devices/README.md"])(
    "%s links only to what is there",
    (file) => {
      const text = readFileSync(join(root, file), "utf8");
      for (const [, target = ""] of text.matchAll(/\]\(([^)#]+)\)/g)) {
        if (!/^https?:/.test(target)) expect(existsSync(join(root, file, "..", target)), `${file} → ${target}`).toBe(true);
      }
    },
  );
});
