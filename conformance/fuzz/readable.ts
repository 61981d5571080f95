/** A sequence for the eye: structures by their members, each call with its answers. */
import * as u from "../../src/uapi/index.ts";
import { type Call, hexOf, type Sequence } from "./program.ts";

type Kinds = Map<number, u.DescriptorKind>;

/** Which slots hold a context, and which a VFIO device. */
function kindsOf(calls: readonly Call[]): Kinds {
  const out: Kinds = new Map();
  for (const c of calls) {
    if (c.op === "open" && c.save !== undefined) out.set(c.save, c.path === "/dev/iommu" ? "iommufd" : "vfio-device");
    const from = typeof c.fd === "object" ? out.get(c.fd.slot) : undefined;
    if (c.op === "dup" && c.save !== undefined && from !== undefined) out.set(c.save, from);
  }
  return out;
}

const TEST_OPS: ReadonlyMap<number, string> = new Map(
  Object.entries(u)
    .filter(([name]) => name.startsWith("IOMMU_TEST_OP_"))
    .map(([name, value]) => [value as number, name]),
);

/** What a call is, in a word: the command of an ioctl, the operation of the selftest, or the system call. */
export function label(c: Call, kind?: u.DescriptorKind): string {
  if (c.op !== "ioctl") return c.op;
  const cmd = typeof c.n[0] === "bigint" ? Number(c.n[0]) : 0;
  const bytes = c.data?.bytes ?? new Uint8Array(0);
  if (cmd === u.IOMMU_TEST_CMD && bytes.length >= 8) {
    const op = new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true);
    return TEST_OPS.get(op) ?? `IOMMU_TEST_CMD ${op}`;
  }
  return u.ioctlName(cmd, kind ?? (cmd >= 0x3b80 ? "iommufd" : "vfio-device"));
}

/** Labels of a sequence's calls. */
export function labels(s: Sequence): string[] {
  const kinds = kindsOf(s.calls);
  return s.calls.map((c) => label(c, typeof c.fd === "object" ? kinds.get(c.fd.slot) : undefined));
}

function argument(c: Call, kind: u.DescriptorKind | undefined): string {
  if (c.data === undefined) return "";
  const { at, bytes, patches, keeps, more } = c.data;
  const cmd = typeof c.n[0] === "bigint" ? Number(c.n[0]) : 0;
  const struct = c.op === "ioctl" ? u.describeIoctl(cmd, kind ?? (cmd >= 0x3b80 ? "iommufd" : "vfio-device"))?.struct : undefined;
  const parts = [` at 0x${at.toString(16)}`];
  if (struct !== undefined && bytes.length >= struct.size) parts.push(` ${u.formatStruct(struct, struct.over(bytes.slice()))}`);
  else if (bytes.length > 0) parts.push(` ${hexOf(bytes)}`);
  for (const p of patches) parts.push(` [${p.at}]=$${p.slot}`);
  for (const k of keeps) parts.push(` $${k.slot}=[${k.at}]`);
  for (const m of more) parts.push(` arena+${m.at}=${hexOf(m.bytes)}`);
  return parts.join("");
}

/** One line a call; `answers` are printed behind, each under its name. */
export function readable(s: Sequence, answers: Readonly<Record<string, readonly string[]>> = {}): string[] {
  const kinds = kindsOf(s.calls);
  return s.calls.map((c, i) => {
    const kind = typeof c.fd === "object" ? kinds.get(c.fd.slot) : undefined;
    const fd = c.fd === undefined ? "" : ` ${typeof c.fd === "number" ? c.fd : `$${c.fd.slot}`}`;
    const n = c.op === "ioctl" ? [] : c.n.map((v) => (typeof v === "object" ? `$${v.slot}` : v > 0xffffn ? `0x${v.toString(16)}` : `${v}`));
    const save = c.save === undefined ? "" : ` -> $${c.save}`;
    const said = Object.entries(answers).map(([who, a]) => `   ${who}: ${a[i] ?? "no answer"}`);
    return [
      `${i} ${label(c, kind)}${fd}${c.path === undefined ? "" : ` ${c.path}`}${n.length > 0 ? ` ${n.join(" ")}` : ""}${argument(c, kind)}${save}`,
      ...said,
    ].join("\n");
  });
}
