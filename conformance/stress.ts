/**
 * `npm run conformance -- stress [--full] [--seed N]`: `barlink run` under load and under the axe.
 *
 * Programs in C (dynamic and static), Python, Go and a shell pipeline, as the
 * user and, for root, also as nobody; processes, threads and signals; the
 * program and barlink itself killed at random moments. Each run must end by
 * itself with the status that is expected, and leave nothing: no process, no
 * file, nothing in the embedded kernel (`--debug` says so); after many deaths
 * barlink has no more descriptors and no zombie. When barlink is killed, its
 * program ends within seconds, the user is told, and the folder goes.
 *
 * By default numbers are small, for a minute; `--full` is what is claimed:
 * 1,000 deaths of the program, 100 of barlink, 4 threads × 20,000 ioctls.
 * Needs cc; Python and Go are taken if they are there.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../src/lib/rng.ts";

const ROOT: string = join(import.meta.dirname, "..");
const SOURCES: string = join(import.meta.dirname, "stress");
const MAIN: string = join(ROOT, "dist/cli/main.js");
const NOBODY = 65534;
const TIDY = "barlink: nothing is left in the embedded kernel";
/** A run that takes longer hangs. */
const PATIENCE_MS = 300_000;
/** After the end of barlink all else is gone within this. */
const SETTLE_MS = 15_000;

const out = (text: string): void => void process.stdout.write(`${text}\n`);
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const works = (argv: readonly string[]): boolean => spawnSync(argv[0] as string, argv.slice(1)).status === 0;

interface Sizes {
  readonly processes: number;
  readonly ioctls: number;
  readonly longIoctls: number;
  readonly victims: number;
  readonly outerVictims: number;
  readonly barlinks: number;
}

const SMALL: Sizes = { processes: 50, ioctls: 2_000, longIoctls: 20, victims: 30, outerVictims: 2, barlinks: 5 };
const FULL: Sizes = { processes: 50, ioctls: 20_000, longIoctls: 300, victims: 970, outerVictims: 30, barlinks: 100 };

/** Who runs it: a prefix of the command, and who owns its folder. */
interface User {
  readonly name: string;
  readonly prefix: readonly string[];
  readonly uid: number | undefined;
}

interface Ended {
  readonly status: number | undefined;
  readonly signal: string | undefined;
  readonly ms: number;
}

/** One run of barlink, with a folder of its own for temporary files and a mark in the environment of all its processes. */
class Run {
  readonly child: ChildProcess;
  readonly mark: string;
  readonly folder: string;
  readonly ended: Promise<Ended>;
  readonly #closed: Promise<void>;
  #text = "";

  constructor(base: string, user: User, argv: readonly string[], mark: string) {
    this.mark = mark;
    this.folder = join(base, mark);
    mkdirSync(this.folder);
    if (user.uid !== undefined) chownSync(this.folder, user.uid, user.uid);
    const all = [...user.prefix, process.execPath, MAIN, "run", "--debug", "--", ...argv];
    const env = { PATH: process.env.PATH ?? "/usr/bin:/bin", TMPDIR: this.folder, BARLINK_STRESS: mark };
    const from = performance.now();
    this.child = spawn(all[0] as string, all.slice(1), { cwd: "/", env, stdio: ["ignore", "pipe", "pipe"] });
    for (const s of [this.child.stdout, this.child.stderr]) s?.on("data", (d: Buffer) => (this.#text += d.toString()));
    this.ended = new Promise((resolve) => {
      const late = setTimeout(() => this.child.kill("SIGKILL"), PATIENCE_MS);
      this.child.once("exit", (status, signal) => {
        clearTimeout(late);
        resolve({ status: status ?? undefined, signal: signal ?? undefined, ms: performance.now() - from });
      });
    });
    this.#closed = new Promise((resolve) => this.child.once("close", () => resolve()));
  }

  /** All it printed, its watchdog included: complete once nobody has its standard error any more. */
  async text(): Promise<string> {
    await Promise.race([this.#closed, sleep(SETTLE_MS)]);
    return this.#text;
  }

  /** Its processes that live: pid and name. */
  processes(): [pid: number, name: string][] {
    const found: [number, string][] = [];
    for (const pid of readdirSync("/proc").filter((n) => /^\d+$/.test(n))) {
      try {
        const mine =
          readFileSync(`/proc/${pid}/environ`, "latin1").includes(`BARLINK_STRESS=${this.mark}\0`) ||
          readFileSync(`/proc/${pid}/cmdline`, "latin1").includes(this.folder);
        if (mine) found.push([Number(pid), readFileSync(`/proc/${pid}/comm`, "latin1").trim()]);
      } catch {
        // It has ended, or is not ours.
      }
    }
    return found;
  }

  /** What is left once all had time to end; undefined when nothing is. */
  async left(): Promise<string | undefined> {
    const from = performance.now();
    for (;;) {
      const alive = this.processes();
      const files = readdirSync(this.folder);
      if (alive.length === 0 && files.length === 0) {
        rmSync(this.folder, { recursive: true });
        return undefined;
      }
      if (performance.now() - from > SETTLE_MS) {
        for (const [pid] of alive) process.kill(pid, "SIGKILL");
        return [...alive.map(([pid, name]) => `process ${pid} (${name})`), ...files.map((f) => `file ${f}`)].join(", ");
      }
      await sleep(20);
    }
  }
}

class Stress {
  readonly #base: string;
  readonly #rng: Rng;
  #runs = 0;
  failures = 0;

  constructor(base: string, seed: number) {
    this.#base = base;
    this.#rng = new Rng(seed);
  }

  start(user: User, argv: readonly string[]): Run {
    return new Run(this.#base, user, argv, `r${process.pid}.${this.#runs++}`);
  }

  /** A moment from 0 to `most` ms. */
  moment(most: number): number {
    return this.#rng.below(most * 16) / 16;
  }

  say(ok: boolean, what: string, why = ""): void {
    if (!ok) this.failures++;
    out(`${ok ? "ok  " : "FAIL"} ${what}${why === "" ? "" : `: ${why}`}`);
  }

  /** A run that ends by itself, with status 0 and nothing left. */
  async whole(user: User, what: string, argv: readonly string[], expect = ""): Promise<void> {
    const run = this.start(user, argv);
    const e = await run.ended;
    const left = await run.left();
    const text = await run.text();
    const wrong: string[] = [];
    if (e.status !== 0) wrong.push(e.signal === undefined ? `status ${e.status}` : `ended by ${e.signal} after ${e.ms.toFixed(0)} ms`);
    if (!text.includes(TIDY)) wrong.push("the embedded kernel holds something");
    if (left !== undefined) wrong.push(`left: ${left}`);
    if (!text.includes(expect)) wrong.push(`it did not print ${JSON.stringify(expect)}`);
    const said = text.replace(TIDY, "").trim();
    const ok = wrong.length === 0;
    this.say(
      ok,
      `${what}, ${user.name} (${(e.ms / 1000).toFixed(1)} s)`,
      ok ? "" : `${wrong.join("; ")}${said === "" ? "" : `\n     ${said}`}`,
    );
  }

  /** The program is killed from outside: barlink ends as it did. */
  async programKilled(user: User, load: string, times: number): Promise<void> {
    const wrong: string[] = [];
    for (let i = 0; i < times; i++) {
      const run = this.start(user, [load, "loop"]);
      let pid: number | undefined;
      while (pid === undefined && run.child.exitCode === null) {
        await sleep(20);
        pid = run.processes().find(([, name]) => name === "load")?.[0];
      }
      await sleep(this.moment(300));
      if (pid !== undefined) process.kill(pid, "SIGKILL");
      const e = await run.ended;
      if (e.signal !== "SIGKILL" || e.ms > PATIENCE_MS) wrong.push(`it ended with ${e.signal ?? `status ${e.status}`}`);
      const left = await run.left();
      const text = await run.text();
      if (!text.includes(TIDY)) wrong.push(`the embedded kernel holds something: ${text.trim()}`);
      if (left !== undefined) wrong.push(`left: ${left}`);
    }
    this.say(wrong.length === 0, `${times} programs killed from outside, ${user.name}`, wrong.join("; "));
  }

  /** Barlink is killed, every fourth time while it starts: all goes, and where a program ran the user is told. */
  async barlinkKilled(user: User, load: string, times: number): Promise<void> {
    const wrong: string[] = [];
    let told = 0;
    for (let i = 0; i < times; i++) {
      const run = this.start(user, [load, "loop"]);
      const early = i % 4 === 3;
      while (!early && run.child.exitCode === null && !run.processes().some(([, name]) => name === "load")) await sleep(5);
      const moment = this.moment(early ? 1_000 : 300);
      await sleep(moment);
      const ran = run.processes().some(([, name]) => name === "load");
      run.child.kill("SIGKILL");
      await run.ended;
      const left = await run.left();
      const text = await run.text();
      if (left !== undefined) wrong.push(`killed ${moment.toFixed(0)} ms after its ${early ? "start" : "program's"}, left: ${left}`);
      // A program that is there, but has not made a call yet, is not known to the watchdog: then it says so.
      const starting = text.includes("barlink: barlink was killed while its program was starting");
      if (text.includes("barlink: barlink was killed, and") || (ran && starting)) told++;
      else if (ran)
        wrong.push(`killed ${moment.toFixed(0)} ms after its ${early ? "start" : "program's"}, the user is not told: ${text.trim()}`);
    }
    this.say(wrong.length === 0, `barlink killed ${times} times, ${told} of them with its program running, ${user.name}`, wrong.join("; "));
  }
}

/** Compiles what there is a compiler for. */
function compile(folder: string): { load: string; static: string | undefined; go: string | undefined } | undefined {
  const load = join(folder, "load");
  const source = join(SOURCES, "load.c");
  const r = spawnSync("cc", ["-O2", "-pthread", "-o", load, source], { encoding: "utf8" });
  if (r.status !== 0) {
    out(`cannot run: ${r.error === undefined ? r.stderr : "there is no C compiler (cc) here"}`);
    return undefined;
  }
  const fixed = join(folder, "load-static");
  const go = join(folder, "load-go");
  const env = { ...process.env, CGO_ENABLED: "0", GOCACHE: join(folder, "go-cache"), GO111MODULE: "off" };
  const built = spawnSync("go", ["build", "-o", go, join(SOURCES, "load.go")], { env }).status === 0;
  return {
    load,
    static: works(["cc", "-O2", "-static", "-pthread", "-o", fixed, source]) ? fixed : undefined,
    go: built ? go : undefined,
  };
}

function users(): User[] {
  const self: User = { name: process.geteuid?.() === 0 ? "as root" : "rootless", prefix: [], uid: undefined };
  if (process.geteuid?.() !== 0) return [self];
  const prefix = ["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups"];
  if (works([...prefix, process.execPath, MAIN, "--version"])) return [self, { name: "rootless", prefix, uid: NOBODY }];
  out(`skip rootless runs: uid ${NOBODY} cannot run ${process.execPath} ${MAIN}, or setpriv is not installed`);
  return [self];
}

export async function run(args: string[]): Promise<number> {
  const sizes = args.includes("--full") ? FULL : SMALL;
  const seed = args.includes("--seed") ? Number(args[args.indexOf("--seed") + 1]) : 1;
  const folder = mkdtempSync(join(tmpdir(), "barlink-stress-"));
  chmodSync(folder, 0o755);
  try {
    const made = compile(folder);
    if (made === undefined) return 1;
    const { load } = made;
    const s = new Stress(folder, seed);
    for (const user of users()) {
      await s.whole(user, "C, dynamic", [load, "once"]);
      if (made.static === undefined) out("skip C, static: cc makes no static program here");
      else await s.whole(user, "C, static", [made.static, "once"]);
      const python = ["/usr/bin/python3", "python3"].find((p) => works([...user.prefix, p, "--version"]));
      if (python === undefined) out(`skip Python, ${user.name}: there is none that this user can run`);
      else await s.whole(user, "Python, threads and a child", [python, join(SOURCES, "load.py")], "done\ndone");
      if (made.go === undefined) out("skip Go: go is not installed");
      else await s.whole(user, "Go, 8 goroutines × 3000 ioctls", [made.go], "done");
      const pipeline = `for i in 1 2 3; do "${load}" once && echo a; done | (cat; "${load}" once && echo a) | wc -l | tr -d " "`;
      await s.whole(user, "a shell pipeline", ["sh", "-c", pipeline], "4\n");
      await s.whole(user, `${sizes.processes} processes at once`, [load, "many", `${sizes.processes}`]);
      await s.whole(user, `4 threads × ${sizes.ioctls} ioctls`, [load, "threads", "4", `${sizes.ioctls}`]);
      await s.whole(user, `a timer of 300 µs, ${sizes.longIoctls} long ioctls`, [load, "timer", `${sizes.longIoctls}`]);
      const victims = user.uid === undefined ? sizes.victims : Math.ceil(sizes.victims / 10);
      await s.whole(user, `${victims} programs killed by another`, [load, "victims", `${victims}`, `${seed}`]);
      const few = user.uid === undefined ? 1 : 4;
      await s.programKilled(user, load, Math.ceil(sizes.outerVictims / few));
      await s.barlinkKilled(user, load, Math.ceil(sizes.barlinks / few));
    }
    out(s.failures === 0 ? "all ended as they should, and left nothing" : `${s.failures} failed`);
    return s.failures === 0 ? 0 : 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
