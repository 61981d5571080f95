/**
 * `docs/compatibility.md`: each call, its structure, whether barlink serves it,
 * and how Linux was seen to refuse it.
 *
 * Nothing in it is written by hand. Names, numbers and structures come from
 * `src/uapi`; the least sizes from the table of iommufd; whether a call is served
 * is asked of a booted machine; the errnos are those that the recordings of
 * Linux 7.3.4 hold for it; and a call points at the rows of
 * `docs/differences.md` that name it.
 *
 * `npm run conformance -- compatibility` fails when the file is not what this
 * makes; with `--write` it writes it.
 */
import { readFileSync, writeFileSync } from "node:fs";
import type { EmbeddedTransport } from "../src/client/index.ts";
import { EmbeddedHost, readMachine } from "../src/client/index.ts";
import type { FileOps } from "../src/kernel/fs/file.ts";
import { iommufdCommands } from "../src/kernel/iommufd/main.ts";
import { EFAULT, ENOTTY, EOPNOTSUPP, Errno } from "../src/lib/errno.ts";
import * as u from "../src/uapi/index.ts";

const DOC = new URL("../docs/compatibility.md", import.meta.url);
const DIFFERENCES = new URL("../docs/differences.md", import.meta.url);
const RECORDINGS = ["hostile-linux.jsonl", "hostile-linux-amd.jsonl", "hostile-linux-intel-scalable.jsonl", "p2p-linux.jsonl"];

const ok = <T>(what: string, r: T): Exclude<T, Errno> => {
  if (r instanceof Errno) throw new Error(`${what}: ${r.name}`);
  return r as Exclude<T, Errno>;
};

/** Errnos that Linux answered a call with in the recordings, by the call's name, in order of their numbers. */
function recordedErrnos(): Map<string, string[]> {
  const seen = new Map<string, Set<string>>();
  for (const name of RECORDINGS) {
    for (const line of readFileSync(new URL(`data/${name}`, import.meta.url), "utf8")
      .trim()
      .split("\n")) {
      const { call, errno } = JSON.parse(line) as { call?: string; errno?: string };
      if (call === undefined || errno === undefined || errno === "") continue;
      const key = call.replace(/[(=].*/, "");
      const set = seen.get(key) ?? new Set();
      seen.set(key, set.add(errno));
    }
  }
  return new Map([...seen].map(([call, set]) => [call, [...set].sort()]));
}

/** Rows of the differences by a word in them, each as where it stands. */
function differenceSections(): (name: string) => string[] {
  let section = "";
  const rows: { readonly section: string; readonly text: string }[] = [];
  for (const line of readFileSync(DIFFERENCES, "utf8").split("\n")) {
    const heading = /^## (.*)/.exec(line)?.[1];
    if (heading !== undefined) section = heading;
    else rows.push({ section, text: line });
  }
  return (name) => {
    const short = name.replace(/^(IOMMU_TEST_OP|IOMMU|VFIO_DEVICE_FEATURE|VFIO_DEVICE|VFIO_IOMMU|VFIO|DMA_BUF_IOCTL|DMA_BUF)_/, "");
    // A short name that is an everyday word (MAP, RESET) proves nothing.
    const words = short.includes("_") ? [name, short] : [name];
    const pattern = new RegExp(`(?<![A-Z0-9_])(${words.join("|")})(?![A-Z0-9_])`);
    return [...new Set(rows.filter((r) => pattern.test(r.text)).map((r) => r.section))];
  };
}

const anchor = (section: string): string =>
  section
    .toLowerCase()
    .replace(/[^\w\- ]/g, "")
    .replaceAll(" ", "-");
const links = (sections: readonly string[]): string =>
  sections.map((s) => (s === "" ? "[recorded](differences.md)" : `[${s.toLowerCase()}](differences.md#${anchor(s)})`)).join(", ");

/** A structure's members with their offsets: `size u32 @0`. */
function members(struct: u.AnyStruct): string {
  const typeName = (t: u.FieldType): string => {
    if (typeof t === "string") return t;
    if (Array.isArray(t)) return `${typeName(t[0] as u.FieldType)}[${t[1] === "tail" ? "" : t[1]}]`;
    return `struct ${(t as u.AnyStruct).name}`;
  };
  return Object.entries(struct.fields)
    .map(([name, type]) => `\`${name}\` ${typeName(type)} @${struct.offsets[name]}`)
    .join(", ");
}

/** Structures that were named, to be listed, with those inside of them. */
class Structures {
  readonly #seen: Map<string, u.AnyStruct> = new Map();

  name(struct: u.AnyStruct | undefined): string {
    if (struct === undefined) return "";
    this.#add(struct);
    return `[\`${struct.name}\`](#structures)`;
  }

  #add(struct: u.AnyStruct): void {
    if (this.#seen.get(struct.name) === struct) return;
    this.#seen.set(struct.name, struct);
    for (const type of Object.values(struct.fields)) {
      const inner = Array.isArray(type) ? (type[0] as u.FieldType) : type;
      if (typeof inner !== "string" && !Array.isArray(inner)) this.#add(inner as u.AnyStruct);
    }
  }

  *rows(): Generator<string> {
    for (const s of [...this.#seen.values()].sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const union = s.union.length > 0 ? ` One place: ${s.union.map((m) => `\`${m}\``).join(", ")}.` : "";
      yield `| \`${s.name}\` | ${s.size} | ${members(s)}.${union} |`;
    }
  }
}

/** A descriptor of each kind on one machine, and what it is asked. */
class Prober {
  readonly host: EmbeddedHost;
  readonly os: EmbeddedTransport;
  /** Devices. */
  readonly #bound: readonly number[];
  readonly fds: Readonly<Record<u.DescriptorKind, number | undefined>>;

  constructor() {
    this.host = EmbeddedHost.boot(readMachine("oracle"), { selftest: true });
    this.os = this.host.os;
    const iommufd = this.host.openIommufd();
    const devices = this.host.devices.filter((a) => this.os.vfioDevicePath(a) !== undefined);
    const [inGroup, ...others] = devices;
    // The handles live as long as the process.
    this.#bound = others.map((address) => this.host.openDevice(address).bind(iommufd).fd);
    const heap = ok("heap", this.os.open("/dev/dma_heap/system", u.O_RDWR));
    const alloc = u.DmaHeapAllocationData.alloc({ len: 4096n, fd_flags: u.O_RDWR });
    ok("a heap's buffer", this.os.ioctlBytes(heap, u.DMA_HEAP_IOCTL_ALLOC, alloc.bytes));
    const sync = u.DmaBufExportSyncFile.alloc({ flags: Number(u.DMA_BUF_SYNC_RW), fd: -1 });
    ok("a sync file", this.os.ioctlBytes(alloc.fd, u.DMA_BUF_IOCTL_EXPORT_SYNC_FILE, sync.bytes));
    const container = ok("container", this.os.open("/dev/vfio/vfio", u.O_RDWR));
    const group = ok("group", this.os.open(`/dev/vfio/${this.host.kernel.pci.devices.get(inGroup ?? "")?.iommuGroup?.id}`, u.O_RDWR));
    const number = new Uint8Array(new Int32Array([container]).buffer);
    ok("SET_CONTAINER", this.os.ioctlBytes(group, u.VFIO_GROUP_SET_CONTAINER, number));
    ok("SET_IOMMU", this.os.ioctl(container, u.VFIO_SET_IOMMU, BigInt(u.VFIO_TYPE1v2_IOMMU)));
    this.fds = {
      iommufd: iommufd.fd,
      "vfio-device": this.#bound[0],
      "vfio-group": group,
      "vfio-container": container,
      "vfio-migration": undefined,
      "dma-buf": alloc.fd,
      "dma-heap": heap,
      udmabuf: ok("udmabuf", this.os.open("/dev/udmabuf", u.O_RDWR)),
      "sync-file": sync.fd,
    };
  }

  /** A command with no argument is answered by something other than "no such command". */
  serves(fd: number | undefined, cmd: number): boolean {
    return fd !== undefined && this.os.ioctl(fd, cmd, 0n) !== ENOTTY;
  }

  /** Some device says that it can get, or set, the feature. */
  feature(index: number, how: number): boolean {
    const view = u.VfioDeviceFeature.alloc({ argsz: u.VfioDeviceFeature.size, flags: index | u.VFIO_DEVICE_FEATURE_PROBE | how });
    return this.#bound.some((fd) => !(this.os.ioctlBytes(fd, u.VFIO_DEVICE_FEATURE, view.bytes) instanceof Errno));
  }

  /** The test operation is known: one that is not answers EOPNOTSUPP. */
  testOp(op: number): boolean {
    const cmd = u.IommuTestCmd.alloc({ size: u.IommuTestCmd.size, op });
    return this.os.ioctlBytes(this.fds.iommufd as number, u.IOMMU_TEST_CMD, cmd.bytes) !== EOPNOTSUPP;
  }

  operations(fd: number | undefined): FileOps | undefined {
    const file = fd === undefined ? EFAULT : this.os.process.files.get(fd);
    return file instanceof Errno ? undefined : file.ops;
  }
}

const yes = (b: boolean): string => (b ? "yes" : "no");
const hex = (n: number): string => `0x${n.toString(16)}`;
const table = (...columns: string[]): string[] => [`| ${columns.join(" | ")} |`, `|${"---|".repeat(columns.length)}`];

const TITLES: Readonly<Record<u.DescriptorKind, string>> = {
  iommufd: "iommufd: `/dev/iommu`",
  "vfio-device": "A VFIO device: `/dev/vfio/devices/vfioN`, or from a group",
  "vfio-group": "A VFIO group: `/dev/vfio/N`",
  "vfio-container": "A VFIO container with type 1: `/dev/vfio/vfio`, or `/dev/iommu` in its place",
  "vfio-migration": "A migration in its pre-copy phase",
  "dma-buf": "A dma-buf",
  "dma-heap": "A dma-buf heap: `/dev/dma_heap/system`",
  udmabuf: "`/dev/udmabuf`",
  "sync-file": "A sync file",
};

export function render(): string {
  const structures = new Structures();
  const errnos = recordedErrnos();
  const differences = differenceSections();
  const seen = (name: string): string => (errnos.get(name) ?? []).join(", ");
  const out: string[] = [
    "<!-- Made by `npm run conformance -- compatibility --write`. A change belongs into what it is made of. -->",
    "# What barlink serves",
    "",
    "Linux 7.3's calls on iommufd, VFIO and dma-buf. *Served*: a booted machine (`oracle`, with the selftest) answers the call with something",
    "other than ENOTTY. *Refused with*: errnos that recordings of Linux 7.3.4 hold for the call, all of which barlink answers in the same places;",
    "empty where nothing was recorded. *Differences*: sections of [differences.md](differences.md) that name the call. Offsets (@) and sizes are in bytes.",
    "",
  ];
  const leastSize = new Map(iommufdCommands().map((c) => [c.cmd, c.minSize]));
  for (const kind of u.DESCRIPTOR_KINDS) {
    // Another machine for each: what is asked of one kind (UNSET_CONTAINER) may change another.
    const probe = new Prober();
    const isIommufd = kind === "iommufd";
    const compat = kind === "vfio-container";
    const extra = isIommufd ? ["Least size"] : compat ? ["Served on iommufd"] : [];
    out.push(`## ${TITLES[kind]}`, "", ...table("Call", "Number", "Structure", "Served", ...extra, "Refused with", "Differences"));
    for (const [cmd, { name, struct }] of u.commandsOf(kind)) {
      const cells = isIommufd ? [`${leastSize.get(cmd) ?? ""}`] : compat ? [yes(probe.serves(probe.fds.iommufd, cmd))] : [];
      const served = isIommufd ? leastSize.has(cmd) && probe.serves(probe.fds.iommufd, cmd) : probe.serves(probe.fds[kind], cmd);
      out.push(
        `| \`${name}\` | ${hex(cmd)} | ${structures.name(struct)} | ${[yes(served), ...cells].join(" | ")} | ${seen(name)} | ${links(differences(name))} |`,
      );
    }
    out.push("");
    const ops = probe.operations(probe.fds[kind]);
    if (ops !== undefined) {
      const has = (["read", "write", "mmap", "poll", "llseek"] as const).filter((op) => ops[op] !== undefined);
      out.push(`Beside these: ${has.length === 0 ? "nothing" : has.map((op) => `\`${op}\``).join(", ")}.`, "");
    }
  }
  const probe = new Prober();
  out.push(
    "## VFIO_DEVICE_FEATURE",
    "",
    "As devices of that machine answer a probe; one that needs another kind of device (a physical function, one that migrates) is offered by none of them.",
    "",
    ...table("Feature", "Index", "Data", "Get", "Set", "Refused with", "Differences"),
  );
  for (const [index, { name, struct }] of u.FEATURES) {
    const [get, set] = [u.VFIO_DEVICE_FEATURE_GET, u.VFIO_DEVICE_FEATURE_SET].map((how) => yes(probe.feature(index, how)));
    out.push(`| \`${name}\` | ${index} | ${structures.name(struct)} | ${get} | ${set} | ${seen(name)} | ${links(differences(name))} |`);
  }
  out.push("", "## IOMMU_TEST_CMD", "", "Only with `--selftest`.", "", ...table("Operation", "Number", "Member", "Served", "Differences"));
  const ops = Object.entries(u as Readonly<Record<string, unknown>>).filter(([name]) => name.startsWith("IOMMU_TEST_OP_")) as [
    string,
    number,
  ][];
  for (const [name, op] of ops.sort((a, b) => a[1] - b[1])) {
    const member = u.testMember(op);
    out.push(
      `| \`${name}\` | ${op} | ${member === undefined ? "" : `\`${member}\``} | ${yes(probe.testOp(op))} | ${links(differences(name))} |`,
    );
  }
  out.push("", "## Structures", "", ...table("Structure", "Size", "Members"), ...structures.rows(), "");
  return out.join("\n");
}

/** What is wrong with the file as it stands; undefined: nothing. */
export function stale(): string | undefined {
  const want = render().split("\n");
  const have = readFileSync(DOC, "utf8").split("\n");
  const at = want.findIndex((line, i) => line !== have[i]);
  if (at < 0 && want.length === have.length) return undefined;
  const line = at < 0 ? want.length : at;
  return `docs/compatibility.md, line ${line + 1}, should be "${want[line] ?? ""}"; npm run conformance -- compatibility --write makes it so`;
}

export function run(args: readonly string[]): number {
  if (args.includes("--write")) writeFileSync(DOC, render());
  const problem = stale();
  process.stdout.write(`${problem ?? "docs/compatibility.md is what the code says"}\n`);
  return problem === undefined ? 0 : 1;
}
