/** Where a program begins: `Host.embedded(machine)`. */
import type { BootOptions } from "../machine/boot.ts";
import type { MachineDescription } from "../machine/schema.ts";
import { EmbeddedHost } from "./embedded_host.ts";
import { readMachine } from "./machine_file.ts";

export const Host: { embedded(machine?: MachineDescription | string, options?: BootOptions): EmbeddedHost } = {
  /** Boots the embedded kernel on a machine: a description, a JSON file, or the name of one that comes with barlink. */
  embedded(machine: MachineDescription | string = "default", options: BootOptions = {}): EmbeddedHost {
    return EmbeddedHost.boot(typeof machine === "string" ? readMachine(machine) : machine, options);
  },
};
