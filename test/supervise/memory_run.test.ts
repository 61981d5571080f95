/** A real program, real memory, a device that copies: the whole way of `barlink run`. */
import { spawnSync } from "node:child_process";
import { chownSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";

const folder = fileURLToPath(new URL("../..", import.meta.url));
const program = fileURLToPath(new URL("memory_program.py", import.meta.url));

const root = process.geteuid?.() === 0;
const NOBODY: { uid: number; gid: number; env: Record<string, string> } = {
  uid: 65534,
  gid: 65534,
  env: { PATH: "/usr/bin:/bin", HOME: "/tmp" },
};

const AS_WE_ARE: Partial<typeof NOBODY> = {};
const UDMABUF = "barlink: /dmabuf: is made of the program's own memory, and cannot be mapped through its descriptor here: map the memfd\n";

it.each([
  ["as root", root, AS_WE_ARE],
  ["as any user", true, root ? NOBODY : AS_WE_ARE],
] as const)(
  "a device reads and writes a program's memory, and nothing else, as long as it is mapped for it: %s",
  (_who, possible, how) => {
    if (!possible) return;
    const uid: number | undefined = how.uid ?? process.geteuid?.();
    const dir = mkdtempSync(join(tmpdir(), "barlink-memory-"));
    if (uid !== undefined) chownSync(dir, uid, uid);
    const trace = join(dir, "trace.json");
    try {
      const command = ["--import", "tsx", "src/cli/main.ts", "run", "--debug", "--trace", trace, "--", "python3", program];
      const r = spawnSync(process.execPath, command, { ...how, cwd: folder, encoding: "utf8", timeout: 55_000 });
      expect({ status: r.status, stderr: r.stderr }).toEqual({
        status: 0,
        stderr: `${UDMABUF}barlink: nothing is left in the embedded kernel\n`,
      });
      const results = JSON.parse(r.stdout) as Record<string, unknown>;
      expect(results).toMatchObject({
        private: "from the program",
        stranger: true,
        "left behind": "left behind",
        shared: "left behind",
        file: "through the file",
        refused: ["EINVAL", "EINVAL", "EINVAL", "EBADF", "EBADF"],
        faults: ["EFAULT", "EFAULT", "EFAULT", "EFAULT"],
        pointers: ["ok", "EFAULT", "EFAULT", "EFAULT", "EFAULT", "EFAULT", "EFAULT", "EFAULT", "EINVAL"],
        udmabuf: ["EINVAL", true, "EBADFD", "ENODEV"],
        heap: ["heap", true, "EINVAL", "EFAULT", "heap"],
        child: "last words",
      });
      if (uid === 0) expect(results).toMatchObject({ memlock: ["ok", "ENOMEM", "ok"] });
      const text = readFileSync(trace, "latin1");
      expect(text).toContain('"mm.kept"');
      expect(text).not.toContain('"mm.lost"');
    } finally {
      rmSync(dir, { recursive: true });
    }
  },
  60_000,
);

it("what a killed process had pinned is lost aloud, and nothing is left of the killed", () => {
  const command = ["--import", "tsx", "src/cli/main.ts", "run", "--debug", "--", "python3", program, "killed"];
  const r = spawnSync(process.execPath, command, { cwd: folder, encoding: "utf8", timeout: 55_000 });
  expect({ signal: r.signal, stdout: r.stdout }).toEqual({ signal: "SIGKILL", stdout: "[false, 8192]\n" });
  expect(r.stderr).toMatch(/^barlink: a device reached for a page of process \d+ that barlink does not have any more \(exited\)/);
  expect(r.stderr).toContain("nothing is left in the embedded kernel");
}, 60_000);
