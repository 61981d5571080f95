/**
 * node scripts/uapi/make_table.mjs HEADERS TESTHEADERS OUT
 *
 * Compiles, against the installed Linux headers in HEADERS (and iommufd_test.h in TESTHEADERS), a C program that prints the
 * layout of every structure and the value of every constant that dist/uapi exports, and writes what it prints to OUT. Nothing in
 * OUT is computed here: barlink supplies only the names to ask for. For the headers that barlink mirrors in full, OUT also
 * lists the names which they define, so that a missing one is noticed.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as uapi from "../../dist/uapi/index.js";

const [headers, testHeaders, out] = process.argv.slice(2);
if (out === undefined) throw new Error("usage: make_table.mjs HEADERS TESTHEADERS OUT");

/** Mirrored in full. */
const MIRRORED = [
  "linux/iommufd.h",
  "linux/vfio.h",
  "linux/dma-buf.h",
  "linux/udmabuf.h",
  "linux/dma-heap.h",
  "linux/sync_file.h",
  "linux/pci_regs.h",
  "iommufd_test.h",
];
/** Of these, barlink has a selection; the first three define what the mirrored ones take for granted. */
const OTHERS = [
  "linux/const.h",
  "asm/bitsperlong.h",
  "linux/bits.h",
  "linux/ioctl.h",
  "linux/fcntl.h",
  "linux/fs.h",
  "linux/stat.h",
  "linux/memfd.h",
  "linux/eventfd.h",
  "linux/resource.h",
  "linux/mman.h",
  "linux/poll.h",
  "linux/capability.h",
];

const work = mkdtempSync(join(tmpdir(), "uapi-"));
const flags = ["-w", "-fmax-errors=3", "-ftrack-macro-expansion=0", "-nostdinc", "-isystem", headers, "-I", testHeaders];
const gcc = (...args) => execFileSync("gcc", [...flags, ...args], { encoding: "utf8", maxBuffer: 1 << 28 });
const includes = [...OTHERS, ...MIRRORED].map((name) => `#include <${name}>`).join("\n");

try {
  const source = join(work, "table.c");
  writeFileSync(source, program());
  const binary = join(work, "table");
  gcc("-o", binary, source);
  const printed = execFileSync(binary, { encoding: "utf8", maxBuffer: 1 << 28 });
  writeFileSync(out, json(table(printed)));
} finally {
  rmSync(work, { recursive: true });
}

/** The C program. It includes no libc header, since those define some of the names themselves. */
function program() {
  const lines = [];
  const exported = Object.entries(uapi).sort(([a], [b]) => (a < b ? -1 : 1));
  for (const [name, value] of exported) {
    if (value instanceof uapi.Struct) askStruct(value, lines);
    else if (typeof value === "string") lines.push(`printf("string\\t${name}\\t%s\\n", ${name});`);
    else if (typeof value === "number" || typeof value === "bigint") lines.push(`CONSTANT(${name});`);
    else if (/^[A-Z_][A-Z0-9_]+$/.test(name) && value.length === 1) {
      for (const argument of [0, 1, 0x12345678, 0xfedcba98]) lines.push(`CALL(${name}, ${argument}u);`);
    }
  }
  return `${includes}
extern int printf(const char *, ...);
#define IS_SIGNED(type) ((type)-1 < (type)1)
#define CONSTANT(name) printf(IS_SIGNED(__typeof__(name)) ? "constant\\t%s\\t%d\\t%lld\\n" : "constant\\t%s\\t%d\\t%llu\\n", \\
  #name, (int)sizeof(name) * 8, (long long)(name))
#define CALL(name, argument) printf("call\\t%s\\t%u\\t%u\\n", #name, argument, (unsigned)name(argument))
#define AT(s, path) ((struct s *)0)->path
#define MEMBER(s, path, element, is_signed) printf("member\\t%s\\t%s\\t%d\\t%d\\t%d\\t%d\\n", #s, #path, \\
  (int)__builtin_offsetof(struct s, path), (int)sizeof(AT(s, path)), (int)sizeof(element), is_signed)
#define TAIL(s, path, is_signed) printf("member\\t%s\\t%s\\t%d\\t0\\t%d\\t%d\\n", #s, #path, \\
  (int)__builtin_offsetof(struct s, path), (int)sizeof(AT(s, path)[0]), is_signed)
int main(void)
{
${lines.join("\n")}
return 0;
}
`;
}

function askStruct(struct, lines) {
  lines.push(`printf("struct\\t${struct.name}\\t%d\\t%d\\n", (int)sizeof(struct ${struct.name}), (int)_Alignof(struct ${struct.name}));`);
  askMembers(struct.name, "", struct, lines);
}

function askMembers(name, prefix, struct, lines) {
  for (const [field, type] of Object.entries(struct.fields)) {
    const path = prefix + field;
    const [element, length] = Array.isArray(type) ? type : [type, undefined];
    const first = `AT(${name}, ${path})${length === undefined ? "" : "[0]"}`;
    const isSigned = typeof element === "string" ? `IS_SIGNED(__typeof__(${first}))` : "0";
    lines.push(length === "tail" ? `TAIL(${name}, ${path}, ${isSigned});` : `MEMBER(${name}, ${path}, ${first}, ${isSigned});`);
    if (typeof element !== "string" && length === undefined) askMembers(name, `${path}.`, element, lines);
  }
}

function table(printed) {
  const result = {
    made: "scripts/uapi/make-table",
    kernel: kernelVersion(),
    compiler: `gcc ${gcc("-dumpfullversion").trim()}, ${gcc("-dumpmachine").trim()}`,
    // structs: members as [offset, bytes, bytes of an element, signed or unsigned]; a flexible array has 0 bytes.
    // constants: [bits of the C type, value]. calls: [argument, result] of macros that take one.
    structs: {},
    constants: {},
    strings: {},
    calls: {},
    headers: {},
  };
  for (const line of printed.trimEnd().split("\n")) {
    const [kind, name, ...rest] = line.split("\t");
    if (kind === "struct") result.structs[name] = { size: Number(rest[0]), align: Number(rest[1]), members: {} };
    else if (kind === "member") {
      const [offset, size, element, isSigned] = rest.slice(1).map(Number);
      result.structs[name].members[rest[0]] = [offset, size, element, isSigned === 1 ? "s" : "u"];
    } else if (kind === "constant") result.constants[name] = [Number(rest[0]), rest[1]];
    else if (kind === "string") result.strings[name] = rest[0];
    else {
      result.calls[name] ??= [];
      result.calls[name].push(rest.map(Number));
    }
  }
  const seen = definitions();
  for (const header of MIRRORED) result.headers[header] = seen(header);
  return result;
}

/** One line for each member and constant, so that a change of the table is readable. */
function json(value) {
  const text = JSON.stringify(value, undefined, 1);
  return `${text.replace(/\[([^[\]{}]{1,80})\]/g, (_, items) => `[${items.trim().replace(/\s+/g, " ")}]`)}\n`;
}

function kernelVersion() {
  const text = readFileSync(join(headers, "linux/version.h"), "utf8");
  return ["MAJOR", "PATCHLEVEL", "SUBLEVEL"].map((part) => new RegExp(`_${part} (\\d+)`).exec(text)[1]).join(".");
}

/** What each header itself defines, read from the preprocessor's output with its line markers. */
function definitions() {
  const source = join(work, "names.c");
  writeFileSync(source, `${includes}\n`);
  const byFile = new Map();
  let lines = [];
  for (const line of gcc("-E", "-dD", source).split("\n")) {
    const marker = /^# \d+ "([^"]*)"/.exec(line);
    if (marker === null) lines.push(line);
    else {
      lines = byFile.get(marker[1]) ?? [];
      byFile.set(marker[1], lines);
    }
  }
  return (header) => {
    const own = [...byFile].filter(([file]) => file.endsWith(`/${header}`)).flatMap(([, text]) => text);
    const text = own.filter((line) => !line.startsWith("#")).join("\n");
    const macros = own.flatMap((line) => {
      const [, name, , body] = /^#define (\w+)(\([^)]*\))? *(.*)$/.exec(line) ?? [];
      return name === undefined || body === "" ? [] : [name];
    });
    const enumerators = [...text.matchAll(/\benum\s*\w*\s*\{([^}]*)\}/g)].flatMap(([, body]) =>
      body.split(",").flatMap((part) => /^\s*(\w+)/.exec(part)?.[1] ?? []),
    );
    const structs = [...text.matchAll(/\bstruct\s+(\w+)\s*\{/g)].map(([, name]) => name);
    return { structs: [...new Set(structs)].sort(), constants: [...new Set([...macros, ...enumerators])].sort() };
  };
}
