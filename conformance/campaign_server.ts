/** A Redis or Valkey server of our own: on the loopback, in a folder of its own, with its append-only file on, and easily killed. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, mkdirSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export const SERVERS = ["redis-server", "valkey-server"] as const;
export type ServerName = (typeof SERVERS)[number];

const INSTALL_MS = 300_000;
const LOOKS = 600;
const LOOK_MS = 50;

export const isInstalled = (name: ServerName): boolean =>
  (process.env.PATH ?? "").split(":").some((dir) => {
    try {
      accessSync(join(dir, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });

function isListed(name: ServerName): boolean {
  const known = spawnSync("apt-cache", ["policy", name], { encoding: "utf8" });
  return known.error === undefined && /Candidate: \d/.test(known.stdout);
}

/** Installs Debian's where it is missing and this process may; else says what is missing. */
export function install(name: ServerName): string | undefined {
  if (isInstalled(name)) return undefined;
  const root = process.getuid?.() === 0;
  // What is listed may be nothing yet.
  if (!isListed(name) && root) spawnSync("apt-get", ["update", "-q"], { timeout: INSTALL_MS, stdio: "ignore" });
  if (!isListed(name)) return `${name} is missing, and this system lists no package of it`;
  if (!root) return `${name} is missing (as root: apt-get install ${name})`;
  spawnSync("apt-get", ["install", "-y", "-q", "--no-install-recommends", name], { timeout: INSTALL_MS, stdio: "ignore" });
  return isInstalled(name) ? undefined : `${name} is missing, and apt-get could not install it`;
}

export class Server {
  readonly #name: ServerName;
  readonly #folder: string;
  readonly #port: number;
  #process: ChildProcess | undefined = undefined;

  private constructor(name: ServerName, folder: string, port: number) {
    this.#name = name;
    this.#folder = folder;
    this.#port = port;
  }

  static async start(name: ServerName, folder: string): Promise<Server> {
    mkdirSync(folder, { recursive: true });
    const server = new Server(name, folder, await freePort());
    await server.start();
    return server;
  }

  get url(): string {
    return `redis://127.0.0.1:${this.#port}`;
  }

  /** Starts it on what its file says. */
  async start(): Promise<void> {
    const options = ["--port", String(this.#port), "--bind", "127.0.0.1", "--dir", this.#folder, "--appendonly", "yes", "--save", ""];
    this.#process = spawn(this.#name, options, { stdio: "ignore" });
    for (let n = 0; n < LOOKS; n++) {
      if (await answers(this.#port)) return;
      await sleep(LOOK_MS);
    }
    await this.kill();
    throw new Error(`${this.#name} does not come up`);
  }

  /** kill -9. */
  async kill(): Promise<void> {
    await killed(this.#process);
    this.#process = undefined;
  }
}

/** Kills a process and waits for its end. */
export async function killed(process: ChildProcess | undefined): Promise<void> {
  if (process === undefined || process.exitCode !== null || process.signalCode !== null) return;
  const end = once(process, "exit");
  process.kill("SIGKILL");
  await end;
}

/** It takes connections, and has read its file. */
function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => socket.write("PING\r\n"));
    socket.once("data", (d) => {
      resolve(d.toString().startsWith("+PONG"));
      socket.destroy();
    });
    socket.once("error", () => resolve(false));
  });
}

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address() as { port: number };
  probe.close();
  await once(probe, "close");
  return port;
}
