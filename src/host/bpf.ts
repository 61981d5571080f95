/**
 * Classic BPF as seccomp takes it: an assembler with labels, and an interpreter to test programs with.
 *
 * A conditional jump reaches 255 instructions forward, no jump goes back. The assembler measures, and puts an
 * unconditional jump (32 bits of reach) behind a condition whose target is too far.
 * Source: include/uapi/linux/{filter,bpf_common,seccomp}.h; limits: net/core/filter.c, kernel/seccomp.c.
 */

/** Offsets in struct seccomp_data. */
export const SECCOMP_DATA_NR = 0;
export const SECCOMP_DATA_ARCH = 4;
export const SECCOMP_DATA_IP = 8;
export const SECCOMP_DATA_ARGS = 16;
export const SECCOMP_DATA_SIZE = 64;

/** A program has at most so many instructions. */
export const BPF_MAXINSNS = 4096;

const LD_W_ABS = 0x20;
const ALU_AND_K = 0x54;
const ALU_OR_K = 0x44;
const ALU_RSH_K = 0x74;
const ALU_LSH_K = 0x64;
const ALU_ADD_K = 0x04;
const ALU_SUB_K = 0x14;
const ALU_MUL_K = 0x24;
const ALU_DIV_K = 0x34;
const ALU_SUB_X = 0x1c;
const MISC_TAX = 0x07;
const JMP_JA = 0x05;
const JMP_CODE = { eq: 0x15, gt: 0x25, ge: 0x35, set: 0x45 } as const;
const ALU_CODE = {
  and: ALU_AND_K,
  or: ALU_OR_K,
  rsh: ALU_RSH_K,
  lsh: ALU_LSH_K,
  add: ALU_ADD_K,
  sub: ALU_SUB_K,
  mul: ALU_MUL_K,
  div: ALU_DIV_K,
} as const;
const RET_K = 0x06;

/** How a condition compares the accumulator with its constant; all unsigned. `set`: any of these bits. */
export type Comparison = "eq" | "gt" | "ge" | "set";
export type Alu = "and" | "or" | "rsh" | "lsh" | "add" | "sub" | "mul" | "div";

type Item =
  | { kind: "plain"; code: number; k: number }
  | { kind: "label"; name: string }
  | { kind: "goto"; target: string }
  | { kind: "if"; code: number; k: number; then: string | undefined; otherwise: string | undefined; farThen: boolean; farElse: boolean };

export class BpfAssembler {
  readonly #items: Item[] = [];

  /** The accumulator becomes the word at `offset` of seccomp_data. */
  load(offset: number): this {
    if (offset < 0 || offset > SECCOMP_DATA_SIZE - 4 || offset % 4 !== 0) throw new RangeError(`no word at ${offset} in seccomp_data`);
    return this.#plain(LD_W_ABS, offset);
  }

  loadNr(): this {
    return this.load(SECCOMP_DATA_NR);
  }

  loadArch(): this {
    return this.load(SECCOMP_DATA_ARCH);
  }

  /** The low half of an argument; both architectures are little-endian. */
  loadArgLow(index: number): this {
    return this.load(SECCOMP_DATA_ARGS + 8 * index);
  }

  loadArgHigh(index: number): this {
    return this.load(SECCOMP_DATA_ARGS + 8 * index + 4);
  }

  /** The accumulator, and `k`. */
  alu(op: Alu, k: number): this {
    return this.#plain(ALU_CODE[op], k);
  }

  and(mask: number): this {
    return this.alu("and", mask);
  }

  /** The accumulator becomes the rest of the word at `offset` after division by `k`, which is not 0. seccomp has no such instruction. */
  loadRest(offset: number, k: number): this {
    return this.load(offset).alu("div", k).alu("mul", k).#plain(MISC_TAX, 0).load(offset).#plain(ALU_SUB_X, 0);
  }

  /** Goes to `then` or to `otherwise`; the one that is left out is the next instruction. */
  if(comparison: Comparison, k: number, then: string | undefined, otherwise?: string): this {
    this.#items.push({ kind: "if", code: JMP_CODE[comparison], k: k >>> 0, then, otherwise, farThen: false, farElse: false });
    return this;
  }

  goto(target: string): this {
    this.#items.push({ kind: "goto", target });
    return this;
  }

  /** Names the next instruction. */
  label(name: string): this {
    this.#items.push({ kind: "label", name });
    return this;
  }

  /** Ends with an action, SECCOMP_RET_*. */
  ret(action: number): this {
    return this.#plain(RET_K, action);
  }

  /** The program as an array of struct sock_filter. RangeError for a label that is missing, doubled or behind. */
  assemble(): Uint8Array {
    let at = this.#layout();
    while (this.#widen(at)) at = this.#layout();
    return this.#emit(at);
  }

  #plain(code: number, k: number): this {
    this.#items.push({ kind: "plain", code, k: k >>> 0 });
    return this;
  }

  /** Where each label is, counted in instructions, as far jumps stand now. */
  #layout(): { labels: Map<string, number>; length: number } {
    const labels = new Map<string, number>();
    let pc = 0;
    for (const item of this.#items) {
      if (item.kind === "label") {
        if (labels.has(item.name)) throw new RangeError(`label ${item.name} is there twice`);
        labels.set(item.name, pc);
      } else {
        pc += sizeOf(item);
      }
    }
    if (pc > BPF_MAXINSNS) throw new RangeError(`${pc} instructions, and a filter has at most ${BPF_MAXINSNS}`);
    return { labels, length: pc };
  }

  /** Marks what does not reach; true when that changed the layout. */
  #widen({ labels }: { labels: Map<string, number> }): boolean {
    let changed = false;
    let pc = 0;
    for (const item of this.#items) {
      if (item.kind === "label") continue;
      if (item.kind === "if") {
        if (!item.farThen && item.then !== undefined && distance(labels, item.then, pc) > 255) {
          item.farThen = changed = true;
        }
        if (!item.farElse && item.otherwise !== undefined && distance(labels, item.otherwise, pc) > 255) {
          item.farElse = changed = true;
        }
      }
      pc += sizeOf(item);
    }
    return changed;
  }

  #emit({ labels, length }: { labels: Map<string, number>; length: number }): Uint8Array {
    const bytes = new Uint8Array(8 * length);
    const view = new DataView(bytes.buffer);
    let pc = 0;
    const put = (code: number, jt: number, jf: number, k: number): void => {
      view.setUint16(8 * pc, code, true);
      view.setUint8(8 * pc + 2, jt);
      view.setUint8(8 * pc + 3, jf);
      view.setUint32(8 * pc + 4, k, true);
      pc++;
    };
    for (const item of this.#items) {
      if (item.kind === "plain") put(item.code, 0, 0, item.k);
      else if (item.kind === "goto") put(JMP_JA, 0, 0, distance(labels, item.target, pc));
      else if (item.kind === "if") {
        // Laid out as: condition, the far jump of `then`, the far jump of `otherwise`.
        const islands = sizeOf(item) - 1;
        const near = (target: string | undefined): number => (target === undefined ? islands : distance(labels, target, pc));
        put(item.code, item.farThen ? 0 : near(item.then), item.farElse ? Number(item.farThen) : near(item.otherwise), item.k);
        if (item.farThen) put(JMP_JA, 0, 0, distance(labels, item.then as string, pc));
        if (item.farElse) put(JMP_JA, 0, 0, distance(labels, item.otherwise as string, pc));
      }
    }
    return bytes;
  }
}

function sizeOf(item: Item): number {
  return item.kind === "if" ? 1 + Number(item.farThen) + Number(item.farElse) : 1;
}

function distance(labels: Map<string, number>, target: string, pc: number): number {
  const to = labels.get(target);
  if (to === undefined) throw new RangeError(`no label ${target}`);
  if (to <= pc) throw new RangeError(`label ${target} is behind the jump to it`);
  return to - pc - 1;
}

/** What a filter is asked about. */
export interface SeccompData {
  readonly nr: number;
  readonly arch: number;
  readonly ip?: bigint;
  readonly args?: readonly bigint[];
}

/** Runs a program as the kernel would, and returns its action. Throws RangeError for an instruction that `BpfAssembler` does not make. */
export function runFilter(program: Uint8Array, data: SeccompData): number {
  const input = new DataView(new ArrayBuffer(SECCOMP_DATA_SIZE));
  input.setInt32(SECCOMP_DATA_NR, data.nr, true);
  input.setUint32(SECCOMP_DATA_ARCH, data.arch, true);
  input.setBigUint64(SECCOMP_DATA_IP, data.ip ?? 0n, true);
  for (const [i, arg] of (data.args ?? []).entries()) input.setBigUint64(SECCOMP_DATA_ARGS + 8 * i, arg, true);
  const code = new DataView(program.buffer, program.byteOffset, program.byteLength);
  let a = 0;
  let x = 0;
  for (let pc = 0; ; pc++) {
    const k = code.getUint32(8 * pc + 4, true);
    const opcode = code.getUint16(8 * pc, true);
    switch (opcode) {
      case LD_W_ABS:
        a = input.getUint32(k, true);
        break;
      case ALU_AND_K:
        a = (a & k) >>> 0;
        break;
      case ALU_OR_K:
        a = (a | k) >>> 0;
        break;
      case ALU_RSH_K:
        a = a >>> k;
        break;
      case ALU_LSH_K:
        a = (a << k) >>> 0;
        break;
      case ALU_ADD_K:
        a = (a + k) >>> 0;
        break;
      case ALU_SUB_K:
        a = (a - k) >>> 0;
        break;
      case ALU_MUL_K:
        a = Math.imul(a, k) >>> 0;
        break;
      case ALU_DIV_K:
        a = Math.floor(a / k);
        break;
      case ALU_SUB_X:
        a = (a - x) >>> 0;
        break;
      case MISC_TAX:
        x = a;
        break;
      case JMP_JA:
        pc += k;
        break;
      case JMP_CODE.eq:
      case JMP_CODE.gt:
      case JMP_CODE.ge:
      case JMP_CODE.set: {
        const holds = opcode === JMP_CODE.eq ? a === k : opcode === JMP_CODE.gt ? a > k : opcode === JMP_CODE.ge ? a >= k : (a & k) !== 0;
        pc += code.getUint8(8 * pc + (holds ? 2 : 3));
        break;
      }
      case RET_K:
        return k;
      default:
        throw new RangeError(`instruction ${opcode.toString(16)} at ${pc} is not one of this assembler's`);
    }
  }
}
