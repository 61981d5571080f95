/**
 * What /proc says of a process. Every reader returns undefined when the process is gone or does not let itself be read:
 * the two cannot be told apart without a race.
 */
import { readdirSync, readFileSync } from "node:fs";

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return undefined;
  }
}

export interface ProcessStatus {
  readonly name: string;
  /** R, S, D, T, t, Z, X. */
  readonly state: string;
  /** Thread group: the pid. */
  readonly tgid: number;
  readonly ppid: number;
  readonly tracerPid: number;
  /** Real, effective, saved, file system. */
  readonly uids: readonly [number, number, number, number];
  readonly gids: readonly [number, number, number, number];
  readonly groups: readonly number[];
  readonly threads: number;
  /** Effective capabilities, a bit each. */
  readonly capEff: bigint;
  /** Capabilities that it can ever have. */
  readonly capBnd: bigint;
  /** Signals that are blocked, ignored, caught; bit n - 1 is signal n. */
  readonly sigBlk: bigint;
  readonly sigIgn: bigint;
  readonly sigCgt: bigint;
  readonly noNewPrivs: boolean;
  /** 0 none, 1 strict, 2 filter. */
  readonly seccomp: number;
  /** Resident memory in kB. */
  readonly vmRss: number;
  /** The pids of the process in its namespaces, outermost first. */
  readonly nspid: readonly number[];
}

const ids = (text: string | undefined): number[] => (text ?? "").split(/\s+/).filter(Boolean).map(Number);
const mask = (text: string | undefined): bigint => BigInt(`0x${text ?? "0"}`);

/** /proc/PID/status, as text. */
export function parseStatus(text: string): ProcessStatus {
  const row = new Map<string, string>();
  for (const line of text.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) row.set(line.slice(0, colon), line.slice(colon + 1).trim());
  }
  const four = (key: string): [number, number, number, number] => {
    const [a = 0, b = 0, c = 0, d = 0] = ids(row.get(key));
    return [a, b, c, d];
  };
  return {
    name: row.get("Name") ?? "",
    state: (row.get("State") ?? "?").charAt(0),
    tgid: Number(row.get("Tgid")),
    ppid: Number(row.get("PPid")),
    tracerPid: Number(row.get("TracerPid")),
    uids: four("Uid"),
    gids: four("Gid"),
    groups: ids(row.get("Groups")),
    threads: Number(row.get("Threads") ?? 0),
    capEff: mask(row.get("CapEff")),
    capBnd: mask(row.get("CapBnd")),
    sigBlk: mask(row.get("SigBlk")),
    sigIgn: mask(row.get("SigIgn")),
    sigCgt: mask(row.get("SigCgt")),
    noNewPrivs: row.get("NoNewPrivs") === "1",
    seccomp: Number(row.get("Seccomp") ?? 0),
    vmRss: Number.parseInt(row.get("VmRSS") ?? "0", 10),
    nspid: ids(row.get("NSpid")),
  };
}

/** Of a process or a thread. */
export function readStatus(pid: number): ProcessStatus | undefined {
  const text = readText(`/proc/${pid}/status`);
  return text === undefined || text === "" ? undefined : parseStatus(text);
}

export interface Mapping {
  readonly start: bigint;
  /** Open. */
  readonly end: bigint;
  readonly readable: boolean;
  readonly writable: boolean;
  readonly executable: boolean;
  readonly shared: boolean;
  /** Of the file, in bytes. */
  readonly offset: bigint;
  readonly devMajor: number;
  readonly devMinor: number;
  /** 0: no file. */
  readonly inode: bigint;
  /** A path, "[heap]", "/memfd:x (deleted)", or "". */
  readonly path: string;
}

const MAPPING = /^([0-9a-f]+)-([0-9a-f]+) (.)(.)(.)(.) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)$/;

/** One line of /proc/PID/maps. */
export function parseMapping(line: string): Mapping | undefined {
  const m = MAPPING.exec(line);
  if (m === null) return undefined;
  const [, start = "", end = "", r, w, x, s, offset = "", major = "", minor = "", inode = "", path = ""] = m;
  return {
    start: BigInt(`0x${start}`),
    end: BigInt(`0x${end}`),
    readable: r === "r",
    writable: w === "w",
    executable: x === "x",
    shared: s === "s",
    offset: BigInt(`0x${offset}`),
    devMajor: Number.parseInt(major, 16),
    devMinor: Number.parseInt(minor, 16),
    inode: BigInt(inode),
    path: path.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))),
  };
}

/** A process's mappings, by address. */
export function readMaps(pid: number): Mapping[] | undefined {
  const text = readText(`/proc/${pid}/maps`);
  if (text === undefined) return undefined;
  return text.split("\n").flatMap((line) => parseMapping(line) ?? []);
}

export interface ProcessStat {
  readonly pid: number;
  readonly name: string;
  readonly state: string;
  readonly ppid: number;
  readonly pgrp: number;
  readonly session: number;
  /** The terminal's device number, 0 for none. */
  readonly tty: number;
  /** In ticks of 1/100 s. */
  readonly utime: number;
  readonly stime: number;
  /** In ticks since boot: with the pid it names a process for good. */
  readonly startTime: number;
}

/** /proc/PID/stat, as text. The name may hold spaces and parentheses. */
export function parseStat(text: string): ProcessStat {
  const open = text.indexOf("(");
  const close = text.lastIndexOf(")");
  const rest = text.slice(close + 2).split(" ");
  const field = (n: number): number => Number(rest[n - 3]);
  return {
    pid: Number(text.slice(0, open)),
    name: text.slice(open + 1, close),
    state: rest[0] ?? "?",
    ppid: field(4),
    pgrp: field(5),
    session: field(6),
    tty: field(7),
    utime: field(14),
    stime: field(15),
    startTime: field(22),
  };
}

export function readStat(pid: number): ProcessStat | undefined {
  const text = readText(`/proc/${pid}/stat`);
  return text === undefined || text === "" ? undefined : parseStat(text);
}

function readNumbers(path: string): number[] | undefined {
  try {
    return readdirSync(path)
      .map(Number)
      .sort((a, b) => a - b);
  } catch {
    return undefined;
  }
}

/** The open descriptors of a process. Its own folder's included, when it is this one. */
export function readFds(pid: number | "self"): number[] | undefined {
  return readNumbers(`/proc/${pid}/fd`);
}

/** The threads of a process. */
export function readThreads(pid: number): number[] | undefined {
  return readNumbers(`/proc/${pid}/task`);
}

/** Who this thread's children are; needs CONFIG_PROC_CHILDREN. */
export function readChildren(pid: number): number[] | undefined {
  const threads = readThreads(pid);
  return threads?.flatMap((tid) => ids(readText(`/proc/${pid}/task/${tid}/children`)));
}

/** /proc/PID/fdinfo/FD, field by field: pos, flags (octal), mnt_id, ino, eventfd-count … */
export function readFdInfo(pid: number, fd: number): ReadonlyMap<string, string> | undefined {
  const text = readText(`/proc/${pid}/fdinfo/${fd}`);
  if (text === undefined) return undefined;
  const fields = new Map<string, string>();
  for (const line of text.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 1).trim());
  }
  return fields;
}
