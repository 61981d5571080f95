/** What `barlink explore --queue` and `barlink worker` agree on, and their way to the server. */
import { Redis } from "ioredis";
import type { PartOrder } from "./explore_worker.ts";
import { UsageError } from "./usage_error.ts";

/** All keys at the server begin with it. */
export const PREFIX = "barlink";
export const QUEUE = "explore";

/** A part on its way to a worker. */
export interface PartJob extends PartOrder {
  /** Version of barlink: the parts of another need not be these. */
  readonly barlink: string;
}

const CONNECT_MS = 5000;
const LONGEST_WAIT_MS = 500;

/**
 * Connects to the server. Once it was there it is waited for whenever it goes
 * away, without end, and what was asked meanwhile is asked again. Throws
 * UsageError where there is none.
 */
export async function connect(url: string): Promise<Redis> {
  const to = addressOf(url);
  let reached = false;
  let why = "";
  const connection = new Redis(to, {
    lazyConnect: true,
    connectTimeout: CONNECT_MS,
    maxRetriesPerRequest: null,
    retryStrategy: (times) => (reached ? Math.min(times * 50, LONGEST_WAIT_MS) : null),
  });
  connection.on("error", (e: Error) => {
    why = (e as NodeJS.ErrnoException).code ?? e.message;
  });
  try {
    await connection.connect();
    await connection.ping();
  } catch (e) {
    connection.disconnect();
    const message = why === "" ? (e as Error).message : why;
    if (/NOAUTH|WRONGPASS/.test(message))
      throw new UsageError(`the server at ${named(url)} wants another password: redis://:PASSWORD@HOST:PORT`);
    throw new UsageError(`no Redis or Valkey server answers at ${named(url)}: ${message}`);
  }
  reached = true;
  tellOfAbsence(connection, url);
  return connection;
}

/** The address without the password that may be in it. */
export function named(url: string): string {
  const { protocol, host, pathname } = new URL(url);
  return `${protocol}//${host}${pathname}`;
}

function addressOf(url: string): string {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  if (parsed === undefined || parsed.hostname === "" || !/^(redis|rediss|valkey|valkeys):$/.test(parsed.protocol))
    throw new UsageError(`--queue takes redis://HOST:PORT, not "${url}"`);
  return url.replace(/^valkey/, "redis");
}

/** Throws UsageError where the server is none that will do: too old a version. */
export async function ready(client: { waitUntilReady(): Promise<unknown> }): Promise<void> {
  try {
    await client.waitUntilReady();
  } catch (e) {
    throw new UsageError(`the server cannot be used: ${(e as Error).message}`);
  }
}

/** A line when the server goes away, and one when it is back. */
function tellOfAbsence(connection: Redis, url: string): void {
  let away = false;
  const say = (what: string): void => void process.stderr.write(`barlink: the server at ${named(url)} ${what}\n`);
  connection.on("reconnecting", () => {
    if (!away) say("is gone; this goes on when it is back");
    away = true;
  });
  connection.on("ready", () => {
    if (away) say("is back");
    away = false;
  });
}
