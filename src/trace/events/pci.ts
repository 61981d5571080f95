/** Events of pci. `type` is `pci.<what>`; `device` is a bdf; addresses and lengths are bytes. */
export type PciEvent =
  /** COMMAND or a BAR was written. */
  | {
      readonly type: "pci.command";
      readonly device: string;
      readonly value: number;
      readonly memory: boolean;
      readonly master: boolean;
    }
  /** A BAR began or ceased to answer at `start`. */
  | {
      readonly type: "pci.decode";
      readonly device: string;
      readonly bar: number;
      readonly start: bigint;
      readonly length: bigint;
      readonly on: boolean;
    }
  /** The function changed its power state: 0 … 3, 4 without power. */
  | { readonly type: "pci.power"; readonly device: string; readonly from: number; readonly to: number }
  | {
      readonly type: "pci.runtime_pm";
      readonly device: string;
      readonly status: "active" | "suspending" | "suspended" | "resuming";
      readonly usage: number;
    }
  /** A DMA request, and who took it: memory or a BAR through the root, a sibling below a switch, the IOMMU's refusal, nobody. */
  | {
      readonly type: "pci.dma";
      readonly device: string;
      readonly write: boolean;
      readonly addr: bigint;
      readonly length: number;
      readonly route: "root" | "peer" | "fault" | "dropped";
      readonly peer?: string;
      readonly ok: boolean;
    }
  | {
      readonly type: "pci.irq";
      readonly device: string;
      readonly kind: "intx" | "msi" | "msix";
      readonly vector: number;
      readonly handled: boolean;
    }
  /** The hardware reset, whoever caused it. */
  | { readonly type: "pci.hw_reset"; readonly device: string; readonly kind: string }
  /** The kernel tried a reset method on a function. */
  | { readonly type: "pci.reset"; readonly device: string; readonly method: string; readonly result: string }
  | { readonly type: "pci.bus_reset"; readonly bridge: string; readonly devices: readonly string[]; readonly result: string }
  | { readonly type: "pci.bind"; readonly device: string; readonly driver: string; readonly result: string }
  | { readonly type: "pci.unbind"; readonly device: string; readonly driver: string }
  | { readonly type: "pci.remove"; readonly device: string }
  | { readonly type: "pci.surprise_remove"; readonly device: string }
  /** VFs that exist from now on. */
  | { readonly type: "pci.sriov"; readonly device: string; readonly vfs: readonly string[] }
  /** How a peer reaches a provider; `acs`: ports in between that redirect. */
  | {
      readonly type: "pci.p2pdma";
      readonly provider: string;
      readonly client: string;
      readonly mapType: "bus_addr" | "thru_host_bridge" | "not_supported";
      readonly distance: number;
      readonly acs: readonly string[];
    };
