/**
 * Folders that an earlier run left behind, because it and its watchdog were
 * killed together. A run writes into its folder who it is: process and start
 * time, which no later process shares.
 */
import { lstatSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { readStat } from "../../host/index.ts";

const OWNER = "owner";
const FOLDER = /^barlink-/;

/** Says in `folder` that it is ours, and removes its neighbours whose owners are dead. */
export function claimFolder(folder: string): void {
  writeFileSync(join(folder, OWNER), `${process.pid} ${readStat(process.pid)?.startTime ?? 0}\n`, { mode: 0o600 });
  const parent = dirname(folder);
  for (const name of readdirSync(parent)) {
    if (FOLDER.test(name) && isStale(join(parent, name))) rmSync(join(parent, name), { recursive: true, force: true });
  }
}

function isStale(folder: string): boolean {
  try {
    const found = lstatSync(folder);
    if (!found.isDirectory() || found.uid !== process.geteuid?.()) return false;
    const [pid = 0, start = 0] = readFileSync(join(folder, OWNER), "latin1").split(" ").map(Number);
    return pid > 0 && readStat(pid)?.startTime !== start;
  } catch {
    // No owner is told, or it went away while we looked.
    return false;
  }
}
