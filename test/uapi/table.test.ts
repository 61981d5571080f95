/**
 * barlink's structures and numbers against conformance/uapi/table.json: what a C compiler says of Linux's own headers.
 * scripts/uapi/make-table makes the table, and has to be run again when a name is added to src/uapi.
 */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import * as uapi from "../../src/uapi/index.ts";
import { type AnyStruct, type FieldType, Struct } from "../../src/uapi/index.ts";

type Member = [offset: number, size: number, element: number, sign: "s" | "u"];
interface Table {
  kernel: string;
  structs: Record<string, { size: number; align: number; members: Record<string, Member> }>;
  constants: Record<string, [bits: number, value: string]>;
  strings: Record<string, string>;
  calls: Record<string, [argument: number, result: number][]>;
  headers: Record<string, { structs: string[]; constants: string[] }>;
}
const table = JSON.parse(readFileSync(new URL("../../conformance/uapi/table.json", import.meta.url), "utf8")) as Table;

const exported = Object.entries(uapi as Record<string, unknown>);
const structs = exported.filter((e): e is [string, AnyStruct] => e[1] instanceof Struct);
const constants = exported.filter((e): e is [string, number | bigint] => typeof e[1] === "number" || typeof e[1] === "bigint");
const strings = exported.filter((e): e is [string, string] => typeof e[1] === "string");
/** Macros of one argument; `_IO` and its kin take types in C, and every command checks them. */
const macros = exported.filter(
  (e): e is [string, (x: number) => number] => typeof e[1] === "function" && /^[A-Z_][A-Z0-9_]+$/.test(e[0]) && e[1].length === 1,
);

const pascalCase = (name: string): string => name.replace(/(?:^|_)([a-z0-9])/g, (_, c: string) => c.toUpperCase());

/** Each member as the table writes it, members of nested structures by their path. */
function membersOf(struct: AnyStruct, prefix = "", base = 0): [string, Member][] {
  return Object.entries(struct.fields).flatMap(([field, type]: [string, FieldType]) => {
    const path = prefix + field;
    const offset = base + (struct.offsets[field] as number);
    const isArray = Array.isArray(type);
    const element = (isArray ? type[0] : type) as string | AnyStruct;
    const size = typeof element === "string" ? Number(element.slice(1)) / 8 : element.size;
    const sign = typeof element === "string" && element.startsWith("s") ? "s" : "u";
    const own: [string, Member] = [path, [offset, struct.widths[field] as number, size, sign]];
    return typeof element === "string" || isArray ? [own] : [own, ...membersOf(element, `${path}.`, offset)];
  });
}

/** Whether plain `char` has a sign is no part of the ABI. */
const withoutCharSign = ([offset, size, element, sign]: Member): Member => [offset, size, element, element === 1 ? "u" : sign];

describe(`against the headers of Linux ${table.kernel}`, () => {
  test.each(structs)("%s lies in memory as the C compiler lays it out", (_, struct) => {
    const c = table.structs[struct.name];
    if (c === undefined) throw new Error(`run scripts/uapi/make-table: it does not know ${struct.name}`);
    expect({ size: struct.size, align: struct.align }).toEqual({ size: c.size, align: c.align });
    expect(membersOf(struct)).toEqual(Object.entries(c.members).map(([name, member]) => [name, withoutCharSign(member)]));
  });

  test("a structure is named as in C, in PascalCase", () => {
    expect(structs.map(([name]) => name)).toEqual(structs.map(([, struct]) => pascalCase(struct.name)));
  });

  test("every constant and ioctl number is the one of C", () => {
    // A number stands for a 32-bit pattern; C writes some masks of 32-bit registers with 64 bits, all ones above.
    const asInC = (name: string, value: number | bigint): bigint | undefined => {
      const [, text] = table.constants[name] ?? [];
      if (text === undefined) return undefined;
      const c = BigInt(text);
      if (typeof value === "bigint") return BigInt.asUintN(64, c);
      const upper = BigInt.asUintN(64, c) >> 32n;
      return upper === 0n || upper === 0xffff_ffffn ? BigInt.asUintN(32, c) : c;
    };
    const mine = constants.map(([name, v]) => [name, typeof v === "bigint" ? BigInt.asUintN(64, v) : BigInt.asUintN(32, BigInt(v))]);
    expect(mine).toEqual(constants.map(([name, v]) => [name, asInC(name, v)]));
    expect(constants.every(([, v]) => typeof v === "bigint" || (Number.isInteger(v) && v < 2 ** 32))).toBe(true);
  });

  test("every string is the one of C", () => {
    expect(Object.fromEntries(strings)).toEqual(table.strings);
  });

  test.each(macros)("%s computes what the macro of C does", (name, macro) => {
    const calls = table.calls[name];
    if (calls === undefined) throw new Error(`run scripts/uapi/make-table: it does not know ${name}`);
    expect(calls.map(([argument]) => [argument, macro(argument) >>> 0])).toEqual(calls);
  });

  test.each(Object.keys(table.headers))("nothing that %s defines is missing", (header) => {
    const { structs: tags, constants: names } = table.headers[header] as Table["headers"][string];
    expect(tags.filter((tag) => !Object.hasOwn(uapi, pascalCase(tag)))).toEqual([]);
    expect(names.filter((name) => !Object.hasOwn(uapi, name))).toEqual([]);
  });
});
