/** Machine descriptions on disk. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type MachineDescription, MachineError, parseMachine } from "../machine/schema.ts";

/** The package's own descriptions; two folders up, both from `src` and from `dist`. */
const builtins = join(import.meta.dirname, "..", "..", "machines");

/** Names of the descriptions that come with barlink. */
export function machineNames(): string[] {
  return readdirSync(builtins)
    .filter((f) => f.endsWith(".json") && !f.endsWith(".schema.json"))
    .map((f) => f.slice(0, -".json".length));
}

/** Reads a JSON file, or one of the package's by name. Throws `MachineError` with what is wrong and where. */
export function readMachine(nameOrFile: string): MachineDescription {
  const builtin = join(builtins, `${nameOrFile}.json`);
  const file = /^[\w-]+$/.test(nameOrFile) && existsSync(builtin) ? builtin : nameOrFile;
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch {
    throw new MachineError(nameOrFile, [`cannot be read: give a JSON file, or one of the names ${machineNames().join(", ")}`]);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (e) {
    throw new MachineError(nameOrFile, [`not JSON: ${e instanceof Error ? e.message : String(e)}`]);
  }
  return parseMachine(value, nameOrFile);
}
