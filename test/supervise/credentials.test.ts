import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Process } from "../../src/kernel/fs/process.ts";
import { Kernel } from "../../src/kernel/kernel.ts";
import { charge, defaultAccountMode } from "../../src/kernel/mm/account.ts";
import { ENOMEM } from "../../src/lib/errno.ts";
import { CAPABILITIES, TargetCredentials, track, withheldFromRoot } from "../../src/supervise/credentials.ts";
import { Peer } from "./peer.ts";

let kernel: Kernel;
let peer: Peer;
const root = process.geteuid?.() === 0;

beforeEach(async () => {
  kernel = new Kernel();
  peer = await Peer.start();
});
afterEach(() => peer.end());

function tracked(p: Peer = peer): { process: Process; live: TargetCredentials } {
  const served = kernel.fs.createProcess();
  const live = new TargetCredentials(kernel, p.target);
  track(served, live);
  return { process: served, live };
}

it("every capability has its name at its bit", () => {
  expect(CAPABILITIES.length).toBe(41);
  expect([CAPABILITIES[0], CAPABILITIES[14], CAPABILITIES[21], CAPABILITIES[40]]).toEqual([
    "CAP_CHOWN",
    "CAP_IPC_LOCK",
    "CAP_SYS_ADMIN",
    "CAP_CHECKPOINT_RESTORE",
  ]);
});

describe("limits", () => {
  it("are the soft ones, as they are at the moment, and what they were last once the process is gone", async () => {
    const { process: p } = tracked();
    await peer.ask("__import__('resource').setrlimit(7, (123, 456))");
    await peer.ask("__import__('resource').setrlimit(8, (65536, __import__('resource').getrlimit(8)[1]))");
    expect([p.rlimits.nofile, p.files.limit, p.rlimits.memlock]).toEqual([123, 123, 65536n]);
    await peer.ask("__import__('resource').setrlimit(7, (200, 456))");
    expect(p.rlimits.nofile).toBe(200);
    await peer.end();
    expect([p.rlimits.nofile, p.rlimits.memlock]).toEqual([200, 65536n]);
  });

  it("bind what is charged", async () => {
    const { process: p } = tracked();
    await peer.ask("__import__('resource').setrlimit(8, (8192, 8192))");
    const source = { mm: p.mm, user: p.creds.user, rlimits: p.rlimits };
    expect(charge(source, "user", 3)).toBe(ENOMEM);
    expect(charge(source, "user", 2)).toBeUndefined();
  });
});

describe("users", () => {
  it("are one object for all processes of a uid", async () => {
    const other = await Peer.start();
    const [a, b] = [tracked(), tracked(other)];
    expect(a.process.creds.uid).toBe(process.geteuid?.());
    expect(a.process.creds.user).toBe(b.process.creds.user);
    await other.end();
    b.live.begin();
    expect(b.process.creds.user).toBe(a.process.creds.user);
  });

  it.skipIf(!root)("change with setresuid: the effective uid is asked, the real one is charged", async () => {
    const { process: p, live } = tracked();
    expect(p.capable("CAP_IPC_LOCK")).toBe(true);
    expect(defaultAccountMode(p)).toBe("none");
    await peer.ask("os.setresuid(1001, 1002, 1001)");
    // Within a call nothing changes.
    expect(p.creds.uid).toBe(0);
    live.begin();
    expect([p.creds.uid, p.creds.user]).toEqual([1002, kernel.fs.user(1001)]);
    expect(p.creds.capabilities.size).toBe(0);
    expect(defaultAccountMode(p)).toBe("user");
  });
});

describe("capabilities", () => {
  it.skipIf(!root)("are the effective ones", async () => {
    const { process: p } = tracked();
    expect(p.capable("CAP_SYS_ADMIN")).toBe(true);
    const status = await peer.ask<string>("[l for l in open('/proc/self/status') if l.startswith('CapEff')][0].split()[1]");
    const bits = BigInt(`0x${status}`);
    for (const [bit, name] of CAPABILITIES.entries()) expect(p.capable(name)).toBe(((bits >> BigInt(bit)) & 1n) === 1n);
  });

  it.skipIf(!root)("that are granted to root are user 0's, beside its own, and no other's", async () => {
    const served = kernel.fs.createProcess();
    const sysResource = 1n << BigInt(CAPABILITIES.indexOf("CAP_SYS_RESOURCE"));
    const live = new TargetCredentials(kernel, peer.target, sysResource);
    track(served, live);
    expect(served.capable("CAP_SYS_RESOURCE")).toBe(true);
    expect(served.capable("CAP_IPC_LOCK")).toBe(true);
    await peer.ask("os.setresuid(1001, 1001, 0)");
    live.begin();
    expect(served.creds.capabilities.size).toBe(0);
  });

  it("withheld from root are those outside of this process's bounding set", () => {
    const bounding = BigInt(`0x${/^CapBnd:\t(\S+)$/m.exec(readFileSync("/proc/self/status", "latin1"))?.[1]}`);
    const withheld = withheldFromRoot();
    for (const bit of CAPABILITIES.keys()) expect((withheld >> BigInt(bit)) & 1n).toBe(1n - ((bounding >> BigInt(bit)) & 1n));
    expect(withheld >> BigInt(CAPABILITIES.length)).toBe(0n);
  });

  it("of a user namespace of its own are nobody's here", async (t) => {
    const [unshare, ...own] = ["unshare", "-U", "-r"] as const;
    if (spawnSync(unshare, [...own, "true"]).status !== 0) t.skip("this needs unshare(1) and user namespaces");
    const inside = await Peer.start([unshare, ...own, "python3"]);
    const { process: p } = tracked(inside);
    expect(await inside.ask("os.getuid()")).toBe(0);
    expect(p.creds.capabilities.size).toBe(0);
    expect(p.creds.uid).toBe(process.geteuid?.());
    await inside.end();
  });
});
