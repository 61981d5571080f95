/** Finding a program, as a shell does. */
import { chmodSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findProgram, LaunchError } from "../../src/supervise/launch.ts";
import { privateTmp } from "./support.ts";

let dir = "";
const make = (name: string, mode: number, content: string | Buffer = "#!/bin/sh\n"): string => {
  const file = join(dir, name);
  mkdirSync(join(file, ".."), { recursive: true });
  writeFileSync(file, content);
  chmodSync(file, mode);
  return file;
};
beforeAll(() => {
  dir = privateTmp();
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const failure = (command: string, path: string): [number, string] => {
  try {
    findProgram(command, [], dir, path);
  } catch (e) {
    if (e instanceof LaunchError) return [e.status, e.message];
    throw e;
  }
  throw new Error(`${command} was found`);
};

describe("findProgram", () => {
  it("takes the first that can be executed in PATH, passing over what cannot", () => {
    make("a/tool", 0o644);
    const second = make("b/tool", 0o755);
    make("c/tool", 0o755);
    mkdirSync(join(dir, "d/tool"), { recursive: true });
    const path = ["nowhere", "d", "a", "b", "c"].map((d) => join(dir, d)).join(":");
    expect(findProgram("tool", ["x"], dir, path)).toEqual({ file: second, argv: ["tool", "x"], warnings: [] });
  });

  it("takes a name with a slash as it stands, from the current folder", () => {
    make("e/run", 0o755);
    expect(findProgram("e/run", [], dir, "/nowhere").file).toBe(join(dir, "e/run"));
    expect(findProgram("./e/run", [], dir, undefined).argv).toEqual(["./e/run"]);
  });

  it("takes an empty element of PATH for the current folder", () => {
    make("here", 0o755);
    expect(findProgram("here", [], dir, "/nowhere:").file).toBe(join(dir, "here"));
  });

  it("has a shell run a text that names no interpreter", () => {
    const file = make("text", 0o755, "echo hi\n");
    expect(findProgram("text", ["x"], dir, dir)).toMatchObject({ file: "/bin/sh", argv: ["/bin/sh", file, "x"] });
  });

  it("follows links", () => {
    const file = make("f/real", 0o755);
    symlinkSync(file, join(dir, "link"));
    expect(findProgram("link", [], dir, dir).file).toBe(join(dir, "link"));
  });

  it("tells what is missing from what may not be run", () => {
    make("g/data", 0o644);
    expect(failure("data", join(dir, "g"))).toEqual([126, "data: cannot be executed: permission denied"]);
    expect(failure("none", join(dir, "g"))).toEqual([127, "none: command not found"]);
    expect(failure("", join(dir, "g"))[0]).toBe(127);
    expect(failure("./g", "")).toEqual([126, "./g: is a directory"]);
    expect(failure("./g/data/x", "")).toEqual([127, "./g/data/x: no such program"]);
  });
});
