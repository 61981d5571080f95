/**
 * node scripts/uapi/test_header.mjs
 *
 * Prints, as a C header, the iommufd test command as dist/uapi has it: for programs that use it, since no installed header does.
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
  ([name, v]) => /^(IOMMU_TEST_|MOCK_)/.test(name) && (typeof v === "number" || typeof v === "bigint"),
);
process.stdout.write(`/* Written by scripts/uapi/test_header.mjs. */
#include <linux/types.h>

${constants.map(([name, v]) => `#define ${name} 0x${v.toString(16)}`).join("\n")}

struct ${uapi.IommuTestCmd.name} {
${members(uapi.IommuTestCmd, "\t")}
};
_Static_assert(sizeof(struct ${uapi.IommuTestCmd.name}) == ${uapi.IommuTestCmd.size}, "layout");
`);
