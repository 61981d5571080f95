/**
 * A machine whose devices a simulated process drives, and a real program that
 * maps the memfd behind that process's descriptor: what the supervisor puts
 * together, without its traps.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { closeFd } from "../../src/host/fd.ts";
import { memfdCreate, reopenFd } from "../../src/host/memfd.ts";
import type { File } from "../../src/kernel/fs/file.ts";
import type { Process } from "../../src/kernel/fs/process.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import type { PciDev } from "../../src/kernel/pci/pci_dev.ts";
import { vfioOf } from "../../src/kernel/vfio/vfio_main.ts";
import { Errno } from "../../src/lib/errno.ts";
import { type BootOptions, boot } from "../../src/machine/boot.ts";
import type { MachineDescription } from "../../src/machine/schema.ts";
import type { Step } from "../../src/sched/task.ts";
import { DeviceFiles, REGION_OFFSET_BASE } from "../../src/supervise/device_files.ts";
import { SYS_mmap } from "../../src/supervise/numbers.ts";
import type { Outcome, Supervisor, TrappedCall } from "../../src/supervise/types.ts";
import { MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, O_RDWR, PROT_READ, PROT_WRITE } from "../../src/uapi/index.ts";
import * as V from "../../src/uapi/vfio.ts";

const SCRATCH = 0x4_0000n;

let built: string | undefined;
let folder: string | undefined;

/** The program, built; undefined without a C compiler. */
export function mapper(): string | undefined {
  if (built !== undefined) return built;
  folder = mkdtempSync(join(tmpdir(), "barlink-test-"));
  const out = join(folder, "mapper");
  try {
    execFileSync("cc", ["-O1", "-o", out, fileURLToPath(new URL("mapper.c", import.meta.url))], { stdio: "ignore" });
  } catch {
    return undefined;
  }
  built = out;
  return out;
}

export function forgetMapper(): void {
  if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
  folder = built = undefined;
}

/** The real program. */
export class Program {
  readonly child: ChildProcess;
  readonly #answers: ((line: string) => void)[] = [];

  constructor(path: string, memfd: number) {
    this.child = spawn(path, [], { stdio: ["pipe", "pipe", "inherit", memfd] });
    const lines = createInterface({ input: this.child.stdout as NodeJS.ReadableStream });
    lines.on("line", (line) => this.#answers.shift()?.(line));
  }

  ask(line: string): Promise<string> {
    return new Promise((resolve) => {
      this.#answers.push(resolve);
      this.child.stdin?.write(`${line}\n`);
    });
  }

  async read(mapping: number, offset: number, width = 8): Promise<bigint | "SIGBUS"> {
    const r = await this.ask(`r ${mapping} ${offset} ${width}`);
    return r === "SIGBUS" ? r : BigInt(r);
  }

  write(mapping: number, offset: number, value: bigint | number, width = 8): Promise<string> {
    return this.ask(`w ${mapping} ${offset} ${width} ${value}`);
  }

  async end(): Promise<void> {
    if (this.child.exitCode !== null) return;
    const over = new Promise((resolve) => this.child.on("exit", resolve));
    this.child.stdin?.end();
    await over;
  }
}

/** A device file that is open, bound, and held by the real program. */
export interface HeldDevice {
  readonly fd: number;
  readonly file: File;
  readonly memfd: number;
  readonly dev: PciDev;
  /** What the supervisor calls at the program's last close. */
  lastClose: () => void;
}

export class BarBench {
  readonly kernel: Kernel;
  readonly process: Process;
  readonly devices: DeviceFiles;
  readonly warnings: string[] = [];
  readonly iommufd: number;
  readonly #held: Map<File, HeldDevice> = new Map();
  readonly #timers: Set<NodeJS.Timeout> = new Set();
  readonly #programs: Program[] = [];
  #last: number = performance.now();
  readonly #scratch: bigint;

  constructor(machine: MachineDescription, options: BootOptions = {}) {
    this.kernel = boot(machine, { ...options, vfioPci: { regionOffsetBase: REGION_OFFSET_BASE } });
    this.process = this.kernel.fs.createProcess({ name: "driver" });
    this.devices = new DeviceFiles(this.#supervisor());
    const at = this.ok(this.process.sys.mmap(0n, SCRATCH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
    this.#scratch = at;
    this.iommufd = this.ok(this.process.sys.open("/dev/iommu", O_RDWR));
  }

  #supervisor(): Supervisor {
    const { kernel } = this;
    const part: Partial<Supervisor> = {
      kernel,
      files: {
        byId: () => undefined,
        lookup: () => undefined,
        memfd: (file) => this.#held.get(file)?.memfd,
        onLastClose: (file, callback) => {
          const held = this.#held.get(file);
          if (held !== undefined) held.lastClose = callback;
        },
        count: 0,
      },
      every: (ms, callback) => {
        const timer = setInterval(() => {
          this.advance();
          callback();
        }, ms);
        this.#timers.add(timer);
        return () => {
          clearInterval(timer);
          this.#timers.delete(timer);
        };
      },
      warn: (message) => this.warnings.push(message),
    };
    return part as Supervisor;
  }

  /** Ticks that are asked for. */
  get timers(): number {
    return this.#timers.size;
  }

  /** Virtual time follows real time. */
  advance(): void {
    const now = performance.now();
    this.kernel.sched.advance(Math.round((now - this.#last) * 1e6));
    this.#last = now;
  }

  ok<T>(body: Step<T>): Exclude<T, Errno> {
    const r = this.process.run(body);
    if (r instanceof Errno) throw new Error(`unexpected ${r.name}`);
    return r as Exclude<T, Errno>;
  }

  dev(model: string): PciDev {
    for (const d of this.kernel.pci.devices.values()) if (d.fn.template.description.name === model) return d;
    throw new Error(`no ${model}`);
  }

  ioctl(fd: number, cmd: number, view?: { readonly bytes: Uint8Array }): number | Errno {
    if (view !== undefined) this.process.space.write(this.#scratch, view.bytes);
    const r = this.process.run(this.process.sys.ioctl(fd, cmd, view === undefined ? 0n : this.#scratch));
    if (view !== undefined) this.process.space.read(this.#scratch, view.bytes);
    return r;
  }

  open(model: string): HeldDevice {
    const dev = this.dev(model);
    const path = vfioOf(this.kernel).cdevPathOf(dev.name);
    if (path === undefined) throw new Error(`${dev.name} has no node`);
    const fd = this.ok(this.process.sys.open(path, O_RDWR));
    const file = this.process.files.get(fd) as File;
    const memfd = memfdCreate("bars");
    if (memfd instanceof Errno) throw new Error(memfd.name);
    const held: HeldDevice = { fd, file, memfd, dev, lastClose: () => {} };
    this.#held.set(file, held);
    return held;
  }

  bind(held: HeldDevice): HeldDevice {
    const r = this.ioctl(
      held.fd,
      V.VFIO_DEVICE_BIND_IOMMUFD,
      V.VfioDeviceBindIommufd.alloc({ argsz: V.VfioDeviceBindIommufd.size, iommufd: this.iommufd }),
    );
    if (r !== 0) throw new Error(`bind: ${String(r)}`);
    return held;
  }

  device(model: string): HeldDevice {
    return this.bind(this.open(model));
  }

  /** The real program, with the file at descriptor 3. */
  program(held: HeldDevice): Program {
    const path = mapper();
    if (path === undefined) throw new Error("no C compiler");
    const fd = reopenFd(held.memfd);
    if (fd instanceof Errno) throw new Error(fd.name);
    const p = new Program(path, fd);
    closeFd(fd);
    this.#programs.push(p);
    return p;
  }

  regionOffset(index: number): bigint {
    return BigInt(index + REGION_OFFSET_BASE) << 40n;
  }

  /** What the trapped mmap is answered: undefined for "go on". */
  mmap(
    held: HeldDevice,
    offset: bigint,
    length: bigint,
    flags: number = MAP_SHARED,
    prot: number = PROT_READ | PROT_WRITE,
  ): Errno | undefined | string {
    const args = [0n, length, BigInt(prot), BigInt(flags), BigInt(held.fd), offset];
    const call: Partial<TrappedCall> = {
      nr: SYS_mmap,
      args,
      int: (i) => Number(BigInt.asIntN(32, args[i] as bigint)),
      fd: () => held.file,
      process: this.process as TrappedCall["process"],
    };
    const outcome = this.process.run(this.devices.mmap(call as TrappedCall)) as Outcome | undefined;
    if (outcome?.kind === "continue") return undefined;
    return outcome?.kind === "return" && outcome.value instanceof Errno ? outcome.value : outcome?.kind;
  }

  /** Both halves: asks, and has the program map. */
  async map(held: HeldDevice, program: Program, bar: number, offset = 0n, length?: bigint): Promise<number> {
    const n = length ?? (held.dev.resources[bar]?.length as bigint);
    const at = this.regionOffset(bar) + offset;
    const refused = this.mmap(held, at, n);
    if (refused !== undefined) throw new Error(`mmap: ${String(refused)}`);
    return Number(await program.ask(`m ${at} ${n}`));
  }

  /** A served call: stores that came before it are carried out first. */
  #served(): void {
    this.advance();
    this.devices.beforeCall();
  }

  pread(held: HeldDevice, region: number, offset: number, count: number): Uint8Array | Errno {
    this.#served();
    const r = this.process.run(this.process.sys.pread(held.fd, this.#scratch, count, this.regionOffset(region) + BigInt(offset)));
    if (r instanceof Errno) return r;
    const bytes = new Uint8Array(r);
    this.process.space.read(this.#scratch, bytes);
    return bytes;
  }

  pwrite(held: HeldDevice, region: number, offset: number, bytes: Uint8Array): number | Errno {
    this.#served();
    this.process.space.write(this.#scratch, bytes);
    return this.process.run(this.process.sys.pwrite(held.fd, this.#scratch, bytes.length, this.regionOffset(region) + BigInt(offset)));
  }

  read32(held: HeldDevice, region: number, offset: number): number {
    const b = this.pread(held, region, offset, 4);
    if (b instanceof Errno) throw new Error(b.name);
    return new DataView(b.buffer).getUint32(0, true);
  }

  write32(held: HeldDevice, region: number, offset: number, value: number): void {
    const b = new Uint8Array(4);
    new DataView(b.buffer).setUint32(0, value, true);
    const r = this.pwrite(held, region, offset, b);
    if (r !== 4) throw new Error(`pwrite: ${String(r)}`);
  }

  /** Sets and clears bits of COMMAND as the user sees it. */
  command(held: HeldDevice, set: number, clear = 0): void {
    const at = V.VFIO_PCI_CONFIG_REGION_INDEX;
    const old = this.pread(held, at, 4, 2) as Uint8Array;
    const v = (((old[0] as number) | ((old[1] as number) << 8)) & ~clear) | set;
    this.pwrite(held, at, 4, Uint8Array.of(v & 0xff, v >> 8));
  }

  /** The program's last descriptor and mapping went, as the watch tells. */
  closed(held: HeldDevice): void {
    held.lastClose();
    this.#held.delete(held.file);
    closeFd(held.memfd);
    this.process.run(this.process.sys.close(held.fd));
  }

  async finish(): Promise<void> {
    for (const p of this.#programs) await p.end();
    for (const held of [...this.#held.values()]) this.closed(held);
    for (const t of this.#timers) clearInterval(t);
  }
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
