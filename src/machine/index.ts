/** Machines: describe one, validate it, boot it. */
export { type BootOptions, boot } from "./boot.ts";
export { builtinModels, defineModel, type ModelFactory, type ModelKind, type ModelRegistry } from "./models.ts";
export { type MachineDescription, MachineError, machineJsonSchema, parseMachine } from "./schema.ts";
