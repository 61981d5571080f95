/**
 * The models a description can name, and what each can be told.
 *
 * A program that brings a model of its own adds it to the registry it boots
 * with: `{ ...builtinModels, mine: defineModel(z.strictObject({…}), (o) => () => new Mine(o)) }`.
 */
import * as z from "zod";
import { Edu } from "../devices/edu.ts";
import { Ivshmem } from "../devices/ivshmem.ts";
import { Nvme } from "../devices/nvme.ts";
import { PciTestdev } from "../devices/pci_testdev.ts";
import type { PciModel } from "../kernel/pci/pci_model.ts";
import { type DeviceNode, ONCE, parseSize, pathOf, sizeSchema } from "./schema.ts";

/** Makes the model anew at each boot, always with the same description object. */
export type ModelFactory = () => PciModel;

export interface ModelKind {
  /** Validates `options` and gives the factory; problems come back as text, each with the path inside the options. */
  resolve(options: unknown, path: readonly PropertyKey[]): ModelFactory | string[];
}

export type ModelRegistry = Readonly<Record<string, ModelKind>>;

/** A model with its options: `make` gets them validated, once per description. */
export function defineModel<T>(options: z.ZodType<T>, make: (options: T) => ModelFactory): ModelKind {
  return {
    resolve(value, path) {
      const r = options.safeParse(value ?? {}, ONCE);
      if (!r.success) return r.error.issues.flatMap((i) => problemsOf(i, path));
      const factory = make(r.data);
      try {
        factory();
      } catch (e) {
        if (e instanceof RangeError) return [`${pathOf(path)}: ${e.message}`];
        throw e;
      }
      return factory;
    },
  };
}

function problemsOf(issue: z.core.$ZodIssue, path: readonly PropertyKey[]): string[] {
  const at = [...path, ...issue.path];
  if (issue.code !== "unrecognized_keys") return [`${pathOf(at)}: ${issue.message}`];
  return issue.keys.map((k) => `${pathOf([...at, k])}: this model has no such option`);
}

const barSize = sizeSchema
  .transform(parseSize)
  .refine((s) => s >= 4096n && (s & (s - 1n)) === 0n, "expected a power of two of at least 4096 bytes");

export const builtinModels: ModelRegistry = {
  edu: defineModel(z.strictObject({ dmaBits: z.number().int().min(12).max(64).optional() }), ({ dmaBits }) => () => {
    return new Edu(dmaBits === undefined ? {} : { dmaMask: (1n << BigInt(dmaBits)) - 1n });
  }),
  ivshmem: defineModel(
    z.strictObject({ size: barSize.optional() }),
    ({ size }) =>
      () =>
        new Ivshmem(size === undefined ? {} : { size }),
  ),
  nvme: defineModel(
    z.strictObject({ cmb: barSize.optional(), pmr: barSize.optional(), busReset: z.enum(["works", "fails"]).optional() }),
    ({ cmb, pmr, busReset = "works" }) =>
      () =>
        new Nvme({
          ...(cmb === undefined ? {} : { cmbSize: cmb }),
          ...(pmr === undefined ? {} : { pmrSize: pmr }),
          busResetFails: busReset === "fails",
        }),
  ),
  "pci-testdev": defineModel(z.strictObject({}), () => () => new PciTestdev()),
};

/** The factory of a node's model; undefined, with the reason added to `problems`, when there is none. */
export function modelFactory(
  models: ModelRegistry,
  node: DeviceNode,
  path: readonly PropertyKey[],
  problems: string[],
): ModelFactory | undefined {
  const kind = Object.hasOwn(models, node.model) ? models[node.model] : undefined;
  if (kind === undefined) {
    problems.push(`${pathOf([...path, "model"])}: no model "${node.model}"; there are ${Object.keys(models).join(", ")}`);
    return undefined;
  }
  const r = kind.resolve(node.options, [...path, "options"]);
  if (typeof r === "function") return r;
  problems.push(...r);
  return undefined;
}
