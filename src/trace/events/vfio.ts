/** Events of vfio. `type` is `vfio.<what>`; `device` is a bus address, lengths are bytes. */
export type VfioEvent =
  | { readonly type: "vfio.register"; readonly device: string; readonly name: string }
  | { readonly type: "vfio.unregister"; readonly device: string; readonly name: string; readonly registrations: number }
  | { readonly type: "vfio.unregistered"; readonly device: string; readonly name: string }
  | { readonly type: "vfio.request"; readonly device: string; readonly count: number; readonly relayed: boolean }
  | { readonly type: "vfio.open"; readonly device: string; readonly name: string }
  | { readonly type: "vfio.close"; readonly device: string; readonly name: string }
  | { readonly type: "vfio.container"; readonly group: number; readonly what: "set" | "unset" }
  | {
      readonly type: "vfio.map_dma";
      readonly iova: bigint;
      readonly length: bigint;
      readonly vaddr: bigint;
      readonly prot: number;
      readonly errno: string | undefined;
    }
  | { readonly type: "vfio.unmap_dma"; readonly iova: bigint; readonly length: bigint; readonly unmapped: bigint }
  | { readonly type: "vfio.bind"; readonly device: string; readonly devid: number }
  | { readonly type: "vfio.attach"; readonly device: string; readonly ptId: number; readonly pasid: number | undefined }
  | { readonly type: "vfio.detach"; readonly device: string; readonly pasid: number | undefined }
  | { readonly type: "vfio.power_state"; readonly device: string; readonly from: number; readonly to: number }
  | { readonly type: "vfio.memory_decode"; readonly device: string; readonly enabled: boolean }
  | { readonly type: "vfio.config_write"; readonly device: string; readonly pos: number; readonly count: number; readonly value: number }
  | {
      readonly type: "vfio.reset";
      readonly device: string;
      readonly how: "ioctl" | "exp-flr" | "af-flr";
      readonly error: string | undefined;
    }
  | { readonly type: "vfio.hot_reset"; readonly device: string; readonly devices: readonly string[]; readonly error: string | undefined }
  | { readonly type: "vfio.low_power"; readonly device: string; readonly what: "entry" | "entry-with-wakeup" | "exit" | "wake" }
  /** The BARs that a real program has mapped show their bytes, or raise SIGBUS. */
  | { readonly type: "vfio.bar_window"; readonly device: string; readonly bars: readonly number[]; readonly state: "shown" | "revoked" }
  /** A store through a real mapping was found. */
  | {
      readonly type: "vfio.bar_store";
      readonly device: string;
      readonly bar: number;
      readonly offset: number;
      readonly length: number;
      readonly value: bigint;
    }
  | { readonly type: "vfio.bar_fault"; readonly device: string; readonly bar: number; readonly offset: bigint; readonly served: boolean }
  | { readonly type: "vfio.irq"; readonly device: string; readonly kind: "intx" | "msi" | "msix" | "err" | "req"; readonly vector: number };
