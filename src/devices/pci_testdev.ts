/**
 * QEMU's pci-testdev: a place for accesses to go, which counts those that match.
 *
 * BAR 0 (memory) and BAR 1 (I/O) begin with a header: which test is selected,
 * the width, offset and value of the access it counts, the count, and its name.
 * Writing a number to the first byte selects a test and clears its count; a
 * number past the last selects none, and the header reads zero.
 *
 * Source: QEMU, docs/specs/pci-testdev.
 */
import { type PciFunctionDescription, PciModel } from "../kernel/pci/pci_model.ts";
import { QEMU_SUBSYSTEM_DEVICE, QEMU_SUBSYSTEM_VENDOR } from "./spec/edu.ts";
import {
  TESTDEV_BAR_SIZE,
  TESTDEV_CLASS,
  TESTDEV_COUNT,
  TESTDEV_DATA,
  TESTDEV_DEVICE,
  TESTDEV_NAME,
  TESTDEV_OFFSET,
  TESTDEV_PORT_SIZE,
  TESTDEV_TEST,
  TESTDEV_VALUE,
  TESTDEV_VENDOR,
  TESTDEV_WIDTH,
} from "./spec/pci_testdev.ts";

/** Where the counted access goes: past the header. */
const TARGET = 0x7f;

const DESCRIPTION: PciFunctionDescription = {
  name: "pci-testdev",
  vendor: TESTDEV_VENDOR,
  device: TESTDEV_DEVICE,
  subsystemVendor: QEMU_SUBSYSTEM_VENDOR,
  subsystemDevice: QEMU_SUBSYSTEM_DEVICE,
  class: TESTDEV_CLASS,
  bars: [
    { index: 0, size: TESTDEV_BAR_SIZE, kind: "mem32", registers: { ranges: [{ offset: 0, length: TARGET + 1, width: 1 }], elsewhere: 0 } },
    { index: 1, size: TESTDEV_PORT_SIZE, kind: "io" },
  ],
};

/** The tests of each BAR, in the order of their numbers. */
const TESTS: readonly (readonly string[])[] = [
  ["mmio-no-eventfd", "mmio-wildcard-eventfd", "mmio-datamatch-eventfd"],
  ["portio-no-eventfd", "portio-wildcard-eventfd", "portio-datamatch-eventfd"],
];

export class PciTestdev extends PciModel {
  override readonly description: PciFunctionDescription = DESCRIPTION;
  /** Header of the selected test, and its BAR; zeros when none is selected. */
  #header: Uint8Array = new Uint8Array(Number(TESTDEV_BAR_SIZE));
  #bar = -1;

  override barRead(bar: number, offset: number, size: number): bigint {
    if (bar !== this.#bar) return 0n;
    let v = 0n;
    for (let i = size - 1; i >= 0; i--) v = (v << 8n) | BigInt(this.#header[offset + i] ?? 0);
    return v;
  }

  override barWrite(bar: number, offset: number, size: number, value: bigint): void {
    if (offset === TESTDEV_TEST && size === 1) {
      this.#select(bar, Number(value));
      return;
    }
    const view = new DataView(this.#header.buffer);
    if (bar !== this.#bar || offset !== view.getUint32(TESTDEV_OFFSET, true) || size !== this.#header[TESTDEV_WIDTH]) return;
    if (Number(value & 0xffff_ffffn) !== view.getUint32(TESTDEV_DATA, true)) return;
    view.setUint32(TESTDEV_COUNT, view.getUint32(TESTDEV_COUNT, true) + 1, true);
  }

  override reset(): void {
    this.#select(-1, 0);
  }

  #select(bar: number, test: number): void {
    this.#header.fill(0);
    const name = TESTS[bar]?.[test];
    this.#bar = name === undefined ? -1 : bar;
    if (name === undefined) return;
    const view = new DataView(this.#header.buffer);
    this.#header[TESTDEV_TEST] = test;
    this.#header[TESTDEV_WIDTH] = 1;
    view.setUint32(TESTDEV_OFFSET, TARGET, true);
    view.setUint32(TESTDEV_DATA, TESTDEV_VALUE, true);
    for (let i = 0; i < name.length; i++) this.#header[TESTDEV_NAME + i] = name.charCodeAt(i);
  }
}
