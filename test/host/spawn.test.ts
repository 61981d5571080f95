import { spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import {
  closeFd,
  fcntl,
  HostError,
  isOpen,
  Listener,
  makePipe,
  ProgramStarter,
  parseStatus,
  readFd,
  readStat,
  readStatus,
  type SpawnOptions,
  SpawnThread,
  spawnProgram,
  startProgram,
  waitPid,
} from "../../src/host/index.ts";
import { interpreter, leavesNothing, ok, open, python, serve, start, trapping } from "./support.ts";

leavesNothing();

const dir = realpathSync(mkdtempSync(join(tmpdir(), "barlink-spawn-")));
afterAll(() => rmSync(dir, { recursive: true }));

/** What a program prints, and how it ends. */
function output(options: Omit<SpawnOptions, "fds"> & { extra?: [number, number][] }): { text: string; status: number; kind: string } {
  const [out, into] = ok(makePipe());
  const program = start({
    ...options,
    fds: [[0, 0], [1, into], [2, 2], ...(options.extra ?? [])],
  });
  closeFd(into);
  let text = "";
  const buffer = new Uint8Array(4096);
  for (let n = ok(readFd(out, buffer)); n > 0; n = ok(readFd(out, buffer))) text += Buffer.from(buffer.subarray(0, n)).toString();
  closeFd(out);
  const event = ok(waitPid(program.pid, { block: true }));
  return { text, status: event?.status ?? -1, kind: event?.kind ?? "" };
}

const sh = (script: string, options: Partial<SpawnOptions> = {}): ReturnType<typeof output> => {
  const { fds: _, ...rest } = options;
  return output({ program: "sh", argv: ["sh", "-c", script], ...rest });
};

const errorOf = (run: () => unknown): HostError => {
  try {
    run();
  } catch (e) {
    if (e instanceof HostError) return e;
    throw e;
  }
  throw new Error("it did not fail");
};

describe("a program", () => {
  it("gets argv[0], arguments of any bytes, environment and folder as told", () => {
    const code = "import os,sys; print(os.fsencode(sys.argv[1]), open('/proc/self/cmdline','rb').read()[:3], os.getcwd(), os.environ)";
    const { text } = output({
      program: interpreter,
      argv: ["abc", "-c", code, new Uint8Array([0xff, 0x41])],
      env: { LC_ALL: "C", PATH: process.env.PATH, NOT: undefined },
      cwd: dir,
    });
    expect(text).toContain(`b'\\xffA' b'abc' ${dir} `);
    expect(text).toContain("'LC_ALL': 'C'");
    expect(text).not.toContain("NOT");
    expect(process.cwd()).not.toBe(dir);
  });

  it("inherits this process's environment, folder and standard descriptors when nothing is said", () => {
    const program = start({ program: "true" });
    expect(ok(waitPid(program.pid, { block: true }))).toMatchObject({ kind: "exited", status: 0 });
    expect(sh("pwd; echo $HOME").text).toBe(`${process.cwd()}\n${process.env.HOME ?? ""}\n`);
  });

  it("starts with every signal at its default and none blocked", () => {
    const status = parseStatus(output({ program: "cat", argv: ["cat", "/proc/self/status"] }).text);
    expect(status).toMatchObject({ sigBlk: 0n, sigIgn: 0n, sigCgt: 0n });
    expect(sh("yes | head -1; kill -PIPE $$")).toEqual({ text: "y\n", kind: "killed", status: 13 });
  });

  it("is bound by no_new_privs and the filter only when there is one", () => {
    expect(sh("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status").text.replace(/\t/g, "")).toBe("NoNewPrivs:0\nSeccomp:0\n");
    const program = start({ program: "sleep", argv: ["sleep", "100"], filter: trapping("getppid") });
    closeFd(program.listenerFd);
    expect(readStatus(program.pid)).toMatchObject({ noNewPrivs: true, seccomp: 2, ppid: process.pid });
    expect(readStatus(process.pid)).toMatchObject({ noNewPrivs: false, seccomp: 0 });
  });

  it("finds exactly the descriptors that it is given, and without FD_CLOEXEC", () => {
    const [a, b] = ok(makePipe());
    const list = (extra: [number, number][]): string[] =>
      output({ program: "ls", argv: ["ls", "/proc/self/fd"], extra })
        .text.trimEnd()
        .split("\n");
    // Descriptors beyond a gap may have been passed to this process, and are passed on, as they would be without it.
    const foreign = list([]).filter((fd) => Number(fd) > 3);
    // 3 is the folder that ls reads.
    expect(
      list([
        [7, a],
        [9, b],
      ]).filter((fd) => !foreign.includes(fd)),
    ).toEqual(["0", "1", "2", "3", "7", "9"]);
    closeFd(a);
    closeFd(b);
  });

  it("gets descriptors that change places with each other", () => {
    const [r1, w1] = ok(makePipe());
    const [r2, w2] = ok(makePipe());
    const fds: [number, number][] = [
      [0, 0],
      [2, 2],
      [w1, w2],
      [w2, w1],
    ];
    const program = start({ program: "sh", argv: ["sh", "-c", `echo one >/proc/self/fd/${w1}; echo two >/proc/self/fd/${w2}`], fds });
    waitPid(program.pid, { block: true });
    const text = new Uint8Array(4);
    readFd(r2, text);
    expect(Buffer.from(text).toString()).toBe("one\n");
    readFd(r1, text);
    expect(Buffer.from(text).toString()).toBe("two\n");
    for (const fd of [r1, w1, r2, w2]) closeFd(fd);
  });

  it("gets the soft limit on descriptors that it is told, and this process keeps its own", () => {
    const ours = spawnSync("sh", ["-c", "ulimit -n"]).stdout.toString();
    expect(sh("ulimit -n", { nofile: 500n }).text).toBe("500\n");
    expect(spawnSync("sh", ["-c", "ulimit -n"]).stdout.toString()).toBe(ours);
  });

  it("can lead a process group or a session, and else is in ours", () => {
    const own = readStat(process.pid);
    for (const [options, expected] of [
      [{}, { group: false, session: false }],
      [{ processGroup: 0 }, { group: true, session: false }],
      [{ session: true }, { group: true, session: true }],
    ] as const) {
      const program = start({ program: "sleep", argv: ["sleep", "100"], ...options });
      const stat = readStat(program.pid);
      expect(stat?.pgrp).toBe(expected.group ? program.pid : own?.pgrp);
      expect(stat?.session).toBe(expected.session ? program.pid : own?.session);
      expect(stat?.ppid).toBe(process.pid);
    }
  });

  it("is found through PATH as execvp finds it", () => {
    const [first, second] = [join(dir, "first"), join(dir, "second")];
    for (const d of [first, second]) mkdirSync(d);
    writeFileSync(join(first, "denied"), "#!/bin/sh\necho no\n");
    writeFileSync(join(second, "found"), "#!/bin/sh\necho found $0\n");
    writeFileSync(join(second, "headless"), "echo headless $1\n");
    writeFileSync(join(second, "wrong"), "#!/no/such/interpreter\n");
    for (const f of ["found", "headless", "wrong"]) chmodSync(join(second, f), 0o755);
    const before = process.env.PATH;
    process.env.PATH = `/no/such/folder:${first}:${second}`;
    try {
      expect(output({ program: "found" }).text).toBe(`found ${second}/found\n`);
      expect(output({ program: "headless", argv: ["headless", "x"] }).text).toBe("headless x\n");
      const failing = (program: string): unknown => {
        const e = errorOf(() => spawnProgram({ program }));
        return [e.call, e.errno?.name];
      };
      expect(failing("denied")).toEqual(["execve", "EACCES"]);
      expect(failing("absent")).toEqual(["execve", "ENOENT"]);
      expect(failing("wrong")).toEqual(["execve", "ENOENT"]);
      expect(failing("")).toEqual(["execve", "ENOENT"]);
      expect(failing(dir)).toEqual(["execve", "EACCES"]);
      expect(failing(`${second}/found/x`)).toEqual(["execve", "ENOTDIR"]);
      expect(errorOf(() => spawnProgram({ program: "absent" })).message).toBe("cannot run absent: ENOENT, nothing by that name or id");
    } finally {
      process.env.PATH = before;
    }
  });

  it("that cannot start leaves no listener, and says which step failed", async () => {
    const absent = startProgram({ program: "/absent", filter: trapping("getppid") });
    expect(errorOf(() => absent.wait()).call).toBe("execve");
    const nowhere = startProgram({ program: "true", cwd: "/absent" });
    expect(errorOf(() => nowhere.wait())).toMatchObject({ call: "chdir", errno: { name: "ENOENT" } });
    const filterless = startProgram({ program: "true", filter: new Uint8Array(8) });
    expect(errorOf(() => filterless.waitListener())).toMatchObject({ call: "seccomp", errno: { name: "EINVAL" } });
    const closed = startProgram({ program: "true", fds: [[5, 9999]] });
    expect(errorOf(() => closed.wait())).toMatchObject({ call: "posix_spawn", errno: { name: "EBADF" } });
    await Promise.all([absent, nowhere, filterless, closed].map((s) => s.ended));
  });

  it("is served even when the filter traps what starting it needs", () => {
    const spawn = startProgram(python("print(1)", 1, { filter: trapping("execve", "write", "openat"), program: "true", argv: ["true"] }));
    const listener = new Listener(spawn.waitListener());
    serve(listener, (call) => listener.continue(call.id));
    listener.close();
    const { pid } = spawn.wait();
    expect(ok(waitPid(pid, { block: true }))).toMatchObject({ kind: "exited", status: 0 });
    return spawn.ended;
  });

  it("and its whole tree are bound: a shell pipeline, a grandchild, a double-forked orphan", () => {
    const script = "(sleep 0.05; cat /proc/self/stat >/dev/null) & echo a | cat | cat; wait";
    const devNull = open("/dev/null", 1);
    const program = start({ program: "sh", argv: ["sh", "-c", script], filter: trapping("openat"), fds: [[1, devNull]] });
    closeFd(devNull);
    const listener = new Listener(program.listenerFd);
    const tids = new Set<number>();
    serve(listener, (call) => {
      tids.add(call.tid);
      listener.continue(call.id);
    });
    listener.close();
    expect(tids.size).toBeGreaterThanOrEqual(4);
  });

  it("can come from a thread that was started ahead, which starts one, or is abandoned", async () => {
    const thread = new SpawnThread().start();
    const starter = new ProgramStarter(thread);
    // Long enough for it to be up; the order comes before or after that all the same.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500);
    const spawn = starter.start({ program: "true" });
    const { pid } = spawn.wait();
    expect(() => starter.start({ program: "true" })).toThrow("a starter starts one program");
    expect(ok(waitPid(pid, { block: true }))).toMatchObject({ kind: "exited", status: 0 });
    const unneeded = new SpawnThread().start();
    new ProgramStarter(unneeded.handle).abandon();
    await Promise.all([spawn.ended, unneeded.ended]);
  });

  it("leaves the listener to whoever has taken it, also when it cannot start", async () => {
    const spawn = startProgram({ program: "/absent", filter: trapping("getppid") });
    const listener = new Listener(spawn.waitListener());
    expect(serve(listener, (call) => listener.continue(call.id))).toBe(0);
    expect(errorOf(() => spawn.poll()).call).toBe("execve");
    expect(isOpen(listener.fd)).toBe(true);
    listener.close();
    await spawn.ended;
  });

  it("leaves the O_NONBLOCK of the descriptors that it shares as it was", () => {
    const [out, into] = ok(makePipe());
    const flags = fcntl(into, 3);
    const program = start(python("pass", into));
    waitPid(program.pid, { block: true });
    expect(fcntl(into, 3)).toBe(flags);
    closeFd(out);
    closeFd(into);
  });
});
