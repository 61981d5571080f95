/**
 * `barlink run` as a user meets it: programs that share, copy, pass on and lose
 * descriptors, in processes and threads; output and status as without barlink;
 * and nothing left at the end.
 */
import { chmodSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { bare, barlink, compile, full, NOTHING_LEFT, privateTmp, type Result } from "./support.ts";

let dir = "";
let core = "";
beforeAll(() => {
  dir = privateTmp();
  core = compile("core.c", dir);
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** Runs a mode of core.c, and checks that it left nothing. */
function mode(...args: string[]): string {
  const tmp = privateTmp();
  try {
    const r = barlink(["--", core, ...args], undefined, { TMPDIR: tmp });
    expect(r.err).toBe(NOTHING_LEFT);
    expect(r.status).toBe(0);
    expect(readdirSync(tmp)).toEqual([]);
    return r.out;
  } finally {
    rmSync(tmp, { recursive: true, force: true });
  }
}

describe("descriptors", () => {
  it("serves a dynamic program", () => {
    expect(mode("one")).toBe("fd 3 ioas 1\n");
  });

  it("serves a static program", () => {
    const r = barlink(["--", compile("core.c", dir, "-static"), "one"]);
    expect(r).toMatchObject({ status: 0, out: "fd 3 ioas 1\n", err: NOTHING_LEFT });
  });

  it("follows a descriptor through a socket, and keeps its file until the last one is closed", () => {
    expect(mode("scm")).toBe("parent ioas 1\nafter close -9\nchild got fd 3 ioas 2\n");
  });

  it("keeps a descriptor over exec, except with O_CLOEXEC", () => {
    expect(mode("exec")).toBe("kept: ioas 2; with O_CLOEXEC: -9\n");
  });

  it("serves a program whose memory looks the same after exec", () => {
    expect(mode("exec", "1")).toBe("kept: ioas 2; with O_CLOEXEC: -9\n");
  });

  it("gives a number again that a failed call had reserved, and answers fstat and lseek as a dma-buf", () => {
    expect(mode("fault")).toBe("unwritable: -1 Bad address\nthen: 0, fd is heap + 1\nsize 4096, SEEK_END 4096, SEEK_CUR -1\n");
  });

  it("shows a character device with the flags it was opened with, and follows dup", () => {
    expect(mode("stats")).toBe("chr rdev set, flags 104002\ndup: 1\n");
  });

  it("answers bad pointers, commands and descriptors as Linux, and takes no made-up file for one of its own", () => {
    expect(mode("hostile")).toBe(
      [
        "null: -1 Bad address",
        "cut: -1 Bad address",
        "kernel: -1 Bad address",
        "unknown: -1 Inappropriate ioctl for device",
        "bad fd: -1 Bad file descriptor",
        "made up: -1 Inappropriate ioctl for device\n",
      ].join("\n"),
    );
  });
});

describe("processes and threads", () => {
  it(`serves ${full ? 50 : 12} processes at once that share a file and open their own`, () => {
    const n = full ? 50 : 12;
    expect(mode("forks", String(n))).toBe(`${n} of ${n} children\n`);
  });

  it(`serves 4 threads of ${full ? 20000 : 1000} calls each`, () => {
    expect(mode("threads", "4", full ? "20000" : "1000")).toBe("4 threads, 0 failed\n");
  });

  it("makes progress under a timer of 300 µs whose handler restarts calls", () => {
    expect(mode("timer", full ? "20000" : "1000")).toBe("0 failed, ticked yes\n");
  });

  it("serves a thread whose leader has exited", () => {
    expect(mode("leader")).toBe("leader gone: ioas 1\n");
  });

  it("serves an orphan to its end, and exits with the program's own status", () => {
    const r = barlink(["--", core, "orphan"]);
    expect(r).toMatchObject({ status: 5, out: "parent ends\norphan: ioas 1\n", err: NOTHING_LEFT });
  });

  it("serves Python, its fork and its subprocesses", () => {
    const program = [
      "import fcntl, os, struct, subprocess, sys",
      "fd = os.open('/dev/iommu', os.O_RDWR)",
      "def alloc(f):",
      "    b = bytearray(struct.pack('III', 12, 0, 0)); fcntl.ioctl(f, 0x3b81, b); return struct.unpack('III', b)[2]",
      "print(alloc(fd), flush=True)",
      "if os.fork() == 0:",
      "    print(alloc(fd), flush=True); os._exit(0)",
      "os.wait()",
      "print(subprocess.run([sys.executable, '-c', 'import sys; sys.exit(4)'], pass_fds=[fd]).returncode, alloc(fd))",
    ].join("\n");
    const r = barlink(["--", "python3", "-c", program]);
    expect(r).toMatchObject({ status: 0, out: "1\n2\n4 3\n", err: NOTHING_LEFT });
  });
});

describe("as without barlink", () => {
  /** Status, signal, output and errors of the program are its own. */
  const same = (command: string, args: string[], input = ""): void => {
    const plain = bare(command, args, input);
    const r = barlink(["--", command, ...args], input);
    const own = (x: Result): unknown => ({ ...x, err: x.err.replace(NOTHING_LEFT, "") });
    expect(own(r)).toEqual(own(plain));
  };

  it("passes input, output and errors through a pipeline", () =>
    same("sh", ["-c", "cat | tr a-z A-Z; echo oops >&2; exit 3"], "some text\n"));
  it("ends by the signal that ended the program", () => {
    for (const s of ["TERM", "KILL", "SEGV", "ABRT", "HUP", "PIPE"]) same("sh", ["-c", `kill -${s} $$`]);
  });
  it("leaves signal dispositions, the mask and the soft limit on descriptors as they were", () =>
    same("sh", ["-c", "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ulimit -Sn; ulimit -Hn"]));
  it("leaks no descriptor of its own into the program", () => same("sh", ["-c", "ls /proc/self/fd | wc -l"]));
  it("runs where it was started, with the environment it was given", () => same("sh", ["-c", "pwd; env | grep -v '^_=' | sort"]));
  it("runs a text without an interpreter line by the shell", () => {
    const script = join(dir, "script");
    writeFileSync(script, "echo $0 $1 | sed 's,.*/,,'; exit 6\n");
    chmodSync(script, 0o755);
    expect(barlink(["--", script, "x"])).toMatchObject({ status: 6, out: "script x\n" });
  });
});

describe("what cannot be run", () => {
  it("says so, with the shell's status", () => {
    expect(barlink(["--", "no-such-program"])).toMatchObject({ status: 127, err: "barlink: no-such-program: command not found\n" });
    expect(barlink(["--", "./no/such"])).toMatchObject({ status: 127, err: "barlink: ./no/such: no such program\n" });
    expect(barlink(["--", "/etc/passwd"])).toMatchObject({
      status: 126,
      err: "barlink: /etc/passwd: cannot be executed: permission denied\n",
    });
    expect(barlink(["--", "/"])).toMatchObject({ status: 126, err: "barlink: /: is a directory\n" });
  });

  it("refuses a 32-bit program and one for another processor", () => {
    const elf = (bits: number, machine: number): string => {
      const file = join(dir, `elf${bits}-${machine}`);
      const head = Buffer.alloc(64);
      head.write("\x7fELF", "latin1");
      head[4] = bits === 32 ? 1 : 2;
      head.writeUInt16LE(machine, 18);
      writeFileSync(file, head);
      chmodSync(file, 0o755);
      return file;
    };
    expect(barlink(["--", elf(32, 3)]).err).toContain("is a 32-bit program");
    expect(barlink(["--", elf(64, 243)]).err).toContain("is built for another processor");
  });

  it("names a machine description that is not there", () => {
    const r = barlink(["--machine", "nowhere", "--", "true"]);
    expect(r.status).toBe(2);
    expect(r.err).toContain("nowhere is not a machine description");
  });

  it("says where it needs a folder", () => {
    const r = barlink(["--", "true"], undefined, { TMPDIR: "/nowhere" });
    expect(r.status).toBe(1);
    expect(r.err).toMatch(/^barlink: cannot make a private folder: ENOENT.*\/nowhere\/.*; set TMPDIR to a folder that can be written\n$/);
  });

  it("inside another barlink says why, and where to look", () => {
    const r = barlink(["--", process.execPath, join(import.meta.dirname, "../../dist/cli/main.js"), "run", "--", "true"]);
    expect(r.status).toBe(1);
    expect(r.err).toContain("EBUSY");
    expect(r.err).toContain("barlink doctor");
  });
});
