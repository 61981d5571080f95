/**
 * `barlink doctor`: what this machine allows, with the reason and the remedy.
 *
 * What can be tried is tried, on a child of its own that it ends by its process
 * id; what cannot be tried is read. The embedded kernel itself needs none of
 * it: only `barlink run` does.
 */
import { closeSync, readFileSync } from "node:fs";
import { release } from "node:os";
import { EmbeddedHost, readMachine } from "../client/index.ts";
import { Errno } from "../lib/errno.ts";

type Verdict = "ok" | "warning" | "missing";

interface Finding {
  readonly verdict: Verdict;
  readonly what: string;
  /** Why it is so. */
  readonly reason: string;
  /** What to do about it; absent when there is nothing to mend. */
  readonly remedy?: string;
}

const ok = (what: string, reason: string): Finding => ({ verdict: "ok", what, reason });
const warning = (what: string, reason: string, remedy?: string): Finding =>
  remedy === undefined ? { verdict: "warning", what, reason } : { verdict: "warning", what, reason, remedy };
const missing = (what: string, reason: string, remedy: string): Finding => ({ verdict: "missing", what, reason, remedy });

const read = (path: string): string | undefined => {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
};

/** Linux 5.19 brought SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, without which a busy timer starves every served call. */
const LEAST_KERNEL = [5, 19] as const;

function kernelVersion(): Finding {
  const [major = 0, minor = 0] = release().split(/[.-]/).map(Number);
  const enough = major > LEAST_KERNEL[0] || (major === LEAST_KERNEL[0] && minor >= LEAST_KERNEL[1]);
  if (enough) return ok("kernel", `Linux ${release()}`);
  return missing(
    "kernel",
    `Linux ${release()} cannot hold a served call against signals`,
    `run on Linux ${LEAST_KERNEL.join(".")} or newer`,
  );
}

/** Yama's ptrace_scope: 0 and 1 let a parent reach its children's memory, 2 asks for a capability, 3 refuses all. */
function ptraceScope(): Finding {
  const scope = read("/proc/sys/kernel/yama/ptrace_scope");
  if (scope === undefined || scope === "0" || scope === "1") {
    return ok("ptrace scope", scope === undefined ? "Yama is not there" : `${scope}: a program's memory can be reached by who started it`);
  }
  const remedy = scope === "3" ? "it cannot be lowered before a reboot" : "sysctl kernel.yama.ptrace_scope=1, or run as root";
  return process.geteuid?.() === 0 && scope === "2"
    ? ok("ptrace scope", "2, and this is root")
    : missing("ptrace scope", `${scope}: nobody but root may reach another process's memory`, remedy);
}

function sandbox(): Finding {
  const status = read("/proc/self/status") ?? "";
  const mode = /^Seccomp:\s*(\d)/m.exec(status)?.[1] ?? "0";
  if (mode === "0") return ok("outer sandbox", "none");
  return warning(
    "outer sandbox",
    "a seccomp filter is in force already (a container's, usually)",
    "if a check below fails, allow seccomp and process_vm_readv in it",
  );
}

function ioUring(): Finding {
  const disabled = read("/proc/sys/kernel/io_uring_disabled");
  if (disabled === undefined || disabled === "2") return ok("io_uring", "not there: nothing can go around the filter");
  return warning(
    "io_uring",
    "a program that opens devices through io_uring goes around barlink",
    "sysctl kernel.io_uring_disabled=2, or have the program use plain calls",
  );
}

function embeddedKernel(): Finding {
  const host = EmbeddedHost.boot(readMachine("default"));
  const devices = host.devices.length;
  host.shutdown();
  return ok("embedded kernel", `boots: ${devices} PCI functions`);
}

/** Everything that can be tried: a filter with a listener on a child, its memory, its descriptors. */
async function trial(): Promise<Finding[]> {
  const host = await import("../host/index.ts");
  const { BpfAssembler, SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF } = host;
  // One number that nothing calls is trapped: there is a listener, and the child never waits for it.
  const filter = new BpfAssembler()
    .loadNr()
    .if("eq", 0x7fff_fff0, "trap")
    .ret(SECCOMP_RET_ALLOW)
    .label("trap")
    .ret(SECCOMP_RET_USER_NOTIF)
    .assemble();
  let child: ReturnType<typeof host.spawnProgram>;
  try {
    child = host.spawnProgram({ program: process.execPath, argv: ["node", "-e", "setTimeout(() => {}, 30000)"], filter });
  } catch (e) {
    const busy = e instanceof host.HostError && e.errno?.name === "EBUSY";
    return [
      missing(
        "seccomp listener",
        busy
          ? "another program listens already: barlink inside barlink, or inside a sandbox that does the same"
          : e instanceof Error
            ? e.message
            : String(e),
        busy ? "run barlink outside of it" : "allow seccomp(2) with SECCOMP_FILTER_FLAG_NEW_LISTENER in the sandbox around this",
      ),
    ];
  }
  try {
    return [ok("seccomp listener", "installed on a child"), ...reach(host, child.pid)];
  } finally {
    host.kill(child.pid, 9);
    host.waitPid(child.pid);
    closeSync(child.listenerFd);
  }
}

function reach(host: typeof import("../host/index.ts"), pid: number): Finding[] {
  const remedy = "lower ptrace_scope, or give the container CAP_SYS_PTRACE";
  const start = host.readMaps(pid)?.find((m) => m.readable)?.start ?? 0n;
  const memory = host.readMemory(pid, start, new Uint8Array(16));
  const out = [
    memory instanceof Errno
      ? missing("a program's memory", `process_vm_readv: ${memory.name}`, remedy)
      : ok("a program's memory", "process_vm_readv reads it"),
  ];
  const pidfd = host.pidfdOpen(pid);
  if (pidfd instanceof Errno) return [...out, missing("a program's descriptors", `pidfd_open: ${pidfd.name}`, "run on Linux 5.6 or newer")];
  const fd = host.pidfdGetFd(pidfd, 1);
  closeSync(pidfd);
  if (fd instanceof Errno) return [...out, missing("a program's descriptors", `pidfd_getfd: ${fd.name}`, remedy)];
  closeSync(fd);
  return [...out, ok("a program's descriptors", "pidfd_getfd copies them")];
}

/** Exit status 0 when `barlink run` works here, 1 when it does not. */
export async function doctor(): Promise<number> {
  const findings = [ok("Node", `${process.versions.node} on ${process.platform}, ${process.arch}`), embeddedKernel()];
  if (process.platform !== "linux") {
    findings.push(
      missing(
        "operating system",
        `${process.platform} has no seccomp`,
        "run programs on Linux; the embedded kernel and its client work here",
      ),
    );
  } else {
    findings.push(kernelVersion(), ptraceScope(), sandbox(), ioUring());
    try {
      findings.push(...(await trial()));
    } catch (e) {
      findings.push(missing("host layer", e instanceof Error ? e.message : String(e), "run on x86-64 Linux with glibc or musl"));
    }
  }
  const marks: Readonly<Record<Verdict, string>> = { ok: "ok     ", warning: "warning", missing: "missing" };
  for (const f of findings) {
    process.stdout.write(`${marks[f.verdict]}  ${f.what.padEnd(24)}${f.reason}\n`);
    if (f.remedy !== undefined) process.stdout.write(`${" ".repeat(33)}→ ${f.remedy}\n`);
  }
  const works = findings.every((f) => f.verdict !== "missing");
  process.stdout.write(works ? "\nbarlink run works here.\n" : "\nbarlink run does not work here; the embedded kernel does.\n");
  return works ? 0 : 1;
}
