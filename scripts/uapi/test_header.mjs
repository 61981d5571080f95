/**
 * node scripts/uapi/test_header.mjs
 *
 * Prints, as a C header, the iommufd test command and the structures of its unit as dist/uapi has them: for programs that use
 * them, since no installed header does.
 */
import * as uapi from "../../dist/uapi/index.js";

const C_TYPE = { u8: "__u8", u16: "__u16", u32: "__u32", s32: "__s32", u64: "__u64" };

/** The members of a structure, those that lie over each other in a union without a name. */
function members(struct, indent) {
  const one = ([name, type]) =>
    typeof type === "string"
      ? `${indent}${C_TYPE[type]} ${name};`
      : `${indent}struct {\n${members(type, `${indent}\t`)}\n${indent}} ${name};`;
  const all = Object.entries(struct.fields);
  const overlaid = all.filter(([name]) => struct.union.includes(name));
  const lines = [];
  for (const field of all) {
    if (!struct.union.includes(field[0])) lines.push(one(field));
    else if (field === overlaid[0]) lines.push(`${indent}union {\n${overlaid.map(one).join("\n")}\n${indent}};`);
  }
  return lines.join("\n");
}

const constants = Object.entries(uapi).filter(
  ([name, v]) => /^(IOMMU_TEST_|MOCK_)|_SELFTEST/.test(name) && (typeof v === "number" || typeof v === "bigint"),
);
const structs = [uapi.IommuTestCmd, ...Object.values(uapi).filter((s) => s?.fields !== undefined && /_selftest$/.test(s.name))];
process.stdout.write(`/* Written by scripts/uapi/test_header.mjs. */
#include <linux/types.h>

${constants.map(([name, v]) => `#define ${name} 0x${v.toString(16)}`).join("\n")}

${structs.map((s) => `struct ${s.name} {\n${members(s, "\t")}\n};\n_Static_assert(sizeof(struct ${s.name}) == ${s.size}, "layout");`).join("\n\n")}
`);
