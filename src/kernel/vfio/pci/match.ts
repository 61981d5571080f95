/**
 * The name by which a group's opener asks for a function: its address, then
 * options, of which there is one, the token that a PF and its VFs share.
 * Source: vfio_pci_core_match (vfio_pci_core.c), uuid_parse (lib/uuid.c).
 */
import { EINVAL, Errno } from "../../../lib/errno.ts";
import type { Step } from "../../../sched/task.ts";
import { vfioPciMatchToken } from "./vf_token.ts";
import type { VfioPciCoreDevice } from "./vfio_pci_core.ts";

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const UUID_LENGTH = 36;
const TOKEN = "vf_token=";

/** False: another device. EINVAL: an option that is unknown, malformed or given twice; else as the token is judged. */
export function* vfioPciMatch(vdev: VfioPciCoreDevice, text: string): Step<boolean | Errno> {
  const { name } = vdev.pdev;
  if (!text.startsWith(name)) return false;
  if (text.length > name.length && text[name.length] !== " ") return false;
  const uuid = parseOptions(text.slice(name.length));
  if (uuid instanceof Errno) return uuid;
  return (yield* vfioPciMatchToken(vdev, uuid)) ?? true;
}

function parseOptions(options: string): Uint8Array | undefined | Errno {
  let uuid: Uint8Array | undefined;
  for (let rest = options.replace(/^ +/, ""); rest !== ""; rest = rest.replace(/^ +/, "")) {
    if (uuid !== undefined || !rest.startsWith(TOKEN)) return EINVAL;
    const digits = rest.slice(TOKEN.length, TOKEN.length + UUID_LENGTH);
    if (!UUID.test(digits)) return EINVAL;
    uuid = Uint8Array.from(digits.replaceAll("-", "").match(/../g) ?? [], (h) => Number.parseInt(h, 16));
    rest = rest.slice(TOKEN.length + UUID_LENGTH);
  }
  return uuid;
}
