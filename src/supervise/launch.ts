/**
 * Finding the program, as a shell would, and refusing clearly what cannot be
 * served.
 *
 * Exit statuses are the shell's: 127 for what is not there, 126 for what cannot
 * be run.
 */
import { accessSync, closeSync, constants, openSync, readSync, statSync } from "node:fs";

/** Why a program cannot be started. */
export class LaunchError extends Error {
  /** What barlink exits with. */
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.name = "LaunchError";
    this.status = status;
  }
}

export interface Launch {
  /** The file to execute. */
  readonly file: string;
  readonly argv: readonly string[];
  /** What the user should know about it before it runs. */
  readonly warnings: readonly string[];
}

const NOT_FOUND = 127;
const NOT_EXECUTABLE = 126;
const ELF_CLASS = 4;
const ELF_MACHINE = 18;
const MACHINES: Readonly<Record<string, number>> = { x64: 62, arm64: 183 };
const S_ISUID = 0o4000;

/** Finds `command` in `searchPath` (or as it stands, with a slash). Throws `LaunchError`. */
export function findProgram(command: string, args: readonly string[], cwd: string, searchPath: string | undefined): Launch {
  const file = locate(command, cwd, searchPath);
  const head = readHead(file);
  if (head === undefined) return { file, argv: [command, ...args], warnings: [] };
  const warnings: string[] = [];
  const isElf = head.length >= 20 && head[0] === 0x7f && head.toString("latin1", 1, 4) === "ELF";
  if (isElf) {
    refuseForeign(command, head);
    const { mode, uid } = statSync(file);
    if ((mode & S_ISUID) !== 0 && uid !== process.geteuid?.()) {
      warnings.push(`${command} is setuid, and runs without that privilege here: a supervised program cannot gain any`);
    }
  } else if (head.length >= 2 && head.toString("latin1", 0, 2) !== "#!") {
    // As execvp does with a text that names no interpreter.
    return { file: "/bin/sh", argv: ["/bin/sh", file, ...args], warnings };
  }
  return { file, argv: [command, ...args], warnings };
}

function refuseForeign(command: string, head: Buffer): void {
  if (head[ELF_CLASS] === 1) {
    throw new LaunchError(
      NOT_EXECUTABLE,
      `${command} is a 32-bit program: its system calls cannot be served. Build it for 64 bits, or use the embedded kernel`,
    );
  }
  const machine = head.readUInt16LE(ELF_MACHINE);
  const own = MACHINES[process.arch];
  if (own !== undefined && machine !== own) {
    throw new LaunchError(NOT_EXECUTABLE, `${command} is built for another processor (ELF machine ${machine})`);
  }
}

function locate(command: string, cwd: string, searchPath: string | undefined): string {
  if (command.includes("/")) {
    const file = command.startsWith("/") ? command : `${cwd}/${command}`;
    const why = executable(file);
    if (why === undefined) return file;
    throw refusal(command, why);
  }
  let refused: string | undefined;
  for (const folder of (searchPath ?? "/bin:/usr/bin").split(":")) {
    const file = `${folder === "" ? cwd : folder}/${command}`;
    const why = executable(file);
    if (why === undefined) return file;
    if (!["ENOENT", "ENOTDIR", "EISDIR"].includes(why)) refused ??= why;
  }
  throw refusal(command, refused ?? "ENOENT", command !== "");
}

function refusal(command: string, why: string, inPath = false): LaunchError {
  if (why === "ENOENT" || why === "ENOTDIR") {
    return new LaunchError(NOT_FOUND, `${command}: ${inPath ? "command not found" : "no such program"}`);
  }
  return new LaunchError(NOT_EXECUTABLE, `${command}: ${why === "EISDIR" ? "is a directory" : "cannot be executed: permission denied"}`);
}

function executable(file: string): string | undefined {
  try {
    const s = statSync(file);
    if (s.isDirectory()) return "EISDIR";
    if (!s.isFile() || (s.mode & 0o111) === 0) return "EACCES";
    accessSync(file, constants.X_OK);
    return undefined;
  } catch (e) {
    return (e as NodeJS.ErrnoException).code ?? "EACCES";
  }
}

/** The first bytes, or undefined when it may be run but not read. */
function readHead(file: string): Buffer | undefined {
  try {
    const fd = openSync(file, "r");
    try {
      const head = Buffer.alloc(64);
      return head.subarray(0, readSync(fd, head, 0, 64, 0));
    } finally {
      closeSync(fd);
    }
  } catch {
    return undefined;
  }
}
