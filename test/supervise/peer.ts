/** A process that does what a test tells it; see peer.py. */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readlinkSync } from "node:fs";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import type { MemoryTarget } from "../../src/supervise/process_memory.ts";

type Child = ChildProcessByStdio<Writable, Readable, null>;

const PROGRAM = fileURLToPath(new URL("peer.py", import.meta.url));

export class Peer {
  readonly #child: Child;
  readonly #answers: AsyncIterator<string>;
  readonly pid: number;
  readonly target: { pid: number; tid: number; alive: boolean } & MemoryTarget;

  private constructor(child: Child, pid: number) {
    this.#child = child;
    this.#answers = createInterface(child.stdout)[Symbol.asyncIterator]();
    this.pid = pid;
    this.target = { pid, tid: pid, alive: true };
  }

  /** Fails with what is missing: Python 3.10 or later. */
  static async start(command: readonly string[] = ["python3"]): Promise<Peer> {
    const [program = "", ...args] = command;
    const child = spawn(program, [...args, "-u", PROGRAM], { stdio: ["pipe", "pipe", "inherit"] });
    await Promise.race([
      once(child, "spawn"),
      once(child, "error").then(([e]) => Promise.reject(new Error(`these tests need ${program} (Python 3.10 or later): ${e}`))),
    ]);
    if (child.pid === undefined) throw new Error(`${program} has no pid`);
    const peer = new Peer(child, child.pid);
    // A launcher may exec: the pid is right once it answers.
    await peer.ask("1");
    return peer;
  }

  /** The value of one Python line; an OSError is `{ errno }`. */
  async ask<T = number>(line: string): Promise<T> {
    this.#child.stdin.write(`${line}\n`);
    const { value, done } = await this.#answers.next();
    if (done === true) throw new Error(`the peer ended at: ${line}`);
    const answer = JSON.parse(value) as { value?: T; errno?: number; error?: string };
    if (answer.error !== undefined) throw new Error(`${line}: ${answer.error}`);
    return answer.errno === undefined ? (answer.value as T) : ({ errno: answer.errno } as T);
  }

  /** Tells it something that it does not answer. */
  tell(line: string): void {
    this.#child.stdin.write(`${line}\n`);
  }

  async end(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill(signal);
    await once(this.#child, "exit");
  }
}

/** What our own descriptors lead to, but for those Node uses. */
export function ownDescriptors(): string[] {
  return readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      const link = readlinkSync(`/proc/self/fd/${fd}`);
      return /memfd:|eventfd|\/proc\/|\/dev\/shm|\/dev\/zero|SYSV/.test(link) && !link.endsWith("/fd") ? [link] : [];
    } catch {
      return [];
    }
  });
}
