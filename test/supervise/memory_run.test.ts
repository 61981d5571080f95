/** A real program, real memory, a device that copies: the whole way of `barlink run`. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
const program = fileURLToPath(new URL("memory_program.py", import.meta.url));

it("a device reads and writes a program's memory, and nothing else, as long as it is mapped for it", () => {
  const dir = mkdtempSync(join(tmpdir(), "barlink-memory-"));
  const trace = join(dir, "trace.json");
  try {
    const command = ["--import", "tsx", "src/cli/main.ts", "run", "--debug", "--trace", trace, "--", "python3", program];
    const r = spawnSync(process.execPath, command, { cwd: root, encoding: "utf8", timeout: 55_000 });
    expect({ status: r.status, stderr: r.stderr }).toEqual({ status: 0, stderr: "barlink: nothing is left in the embedded kernel\n" });
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
      udmabuf: ["EINVAL", true, "EBADFD"],
      child: "last words",
    });
    if (process.geteuid?.() === 0) expect(results).toMatchObject({ memlock: ["ok", "ENOMEM", "ok"] });
    const text = readFileSync(trace, "latin1");
    expect(text).toContain('"mm.kept"');
    expect(text).not.toContain('"mm.lost"');
  } finally {
    rmSync(dir, { recursive: true });
  }
}, 60_000);
