/** Things that are given back twice, too late, or not to those who asked. */
import type * as BufferLifetime from "../../../src/explore/scenarios/buffer_lifetime.ts";
import { bufferLifetime } from "../../../src/explore/scenarios/buffer_lifetime.ts";
import { type Bug, edited, here } from "./bug.ts";
import type * as Claim from "./scenes/claim.ts";
import { claim } from "./scenes/claim.ts";
import type * as CpuAccess from "./scenes/cpu_access.ts";
import { cpuAccess } from "./scenes/cpu_access.ts";
import type * as Descriptor from "./scenes/descriptor.ts";
import { closedByNumber, copiesOut } from "./scenes/descriptor.ts";
import { mappedBuffer } from "./scenes/mapped_buffer.ts";
import type * as ScatterList from "./scenes/scatter_list.ts";
import { scatterList } from "./scenes/scatter_list.ts";

const LIFETIME = "src/explore/scenarios/buffer_lifetime.ts";
const EXPORTER = "src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
const ENABLE = "src/kernel/vfio/pci/enable.ts";
const ATTACH = "    if (privOf(dmabuf).revoked) return ENODEV;\n";
const DESCRIPTOR = "  const fd = dmaBufFd(kernel.current, dmabuf, openFlags);\n";

export const lifetimeBugs: readonly Bug[] = [
  {
    id: "H1",
    what: "an export that finds no free descriptor gives the registration back, and the buffer's release does so again",
    broken: () =>
      edited<typeof BufferLifetime>(
        LIFETIME,
        {
          [EXPORTER]: [
            [
              "  if (fd instanceof Errno) dmaBufPut(dmabuf);",
              "  if (fd instanceof Errno) { dmaBufPut(dmabuf); vdev.vdev.putRegistration(); }",
            ],
          ],
        },
        (m) => m.bufferLifetime({ tasks: ["export", "put"] }),
      ),
    fixed: () => here(bufferLifetime({ tasks: ["export", "put"] })),
    kind: "invariant",
    says: /I4: 1 registrations for 1 files/,
  },
  {
    id: "H7",
    what: "a close takes the function apart before it revokes the buffers",
    broken: () =>
      edited<typeof BufferLifetime>(
        LIFETIME,
        {
          [ENABLE]: [
            [
              "  yield* vfioPciDmaBufCleanup(vdev);\n  yield* disable(vdev);\n",
              "  yield* disable(vdev);\n  yield* vfioPciDmaBufCleanup(vdev);\n",
            ],
          ],
        },
        (m) => m.bufferLifetime({ tasks: ["import", "close"] }),
      ),
    fixed: () => here(bufferLifetime({ tasks: ["import", "close"] })),
    kind: "invariant",
    says: /I6/,
  },
  {
    id: "H8",
    what: "a BAR is exported that the driver has not reserved, and another driver takes it",
    broken: () =>
      edited<typeof Claim>(
        "test/explore/bugs/scenes/claim.ts",
        {
          [ENABLE]: [
            ['pdev.requestRegion(bar, "vfio") === undefined ? undefined : EBUSY', "EBUSY && undefined"],
            ["    if (vdev.barmap[bar] === undefined) pdev.releaseRegion(bar);\n", ""],
          ],
        },
        (m) => m.claim(),
      ),
    fixed: () => here(claim()),
    kind: "invariant",
    says: /given to another driver/,
  },
  {
    id: "H15",
    what: "the length of a buffer of 4 GiB and more wraps in its scatter list",
    broken: () =>
      edited<typeof ScatterList>(
        "test/explore/bugs/scenes/scatter_list.ts",
        { "src/kernel/dma_buf/mapping.ts": [["splitEntry(iova.address, size)", "splitEntry(iova.address, BigInt.asUintN(32, size))"]] },
        (m) => m.scatterList(),
      ),
    fixed: () => here(scatterList()),
    kind: "invariant",
    says: /bytes of a buffer/,
  },
  {
    id: "H15b",
    what: "an entry of a scatter list is cut in the middle of a page",
    broken: () =>
      edited<typeof ScatterList>(
        "test/explore/bugs/scenes/scatter_list.ts",
        { "src/kernel/dma_buf/mapping.ts": [["MAX_SG_ENTRY: bigint = 0xffff_f000n", "MAX_SG_ENTRY: bigint = 0xffff_ffffn"]] },
        (m) => m.scatterList(),
      ),
    fixed: () => here(scatterList()),
    kind: "invariant",
    says: /middle of a page/,
  },
  {
    id: "H16",
    what: "the event of a new descriptor is written when another thread may have closed it",
    broken: () =>
      edited<typeof Descriptor>(
        "test/explore/bugs/scenes/descriptor.ts",
        {
          [EXPORTER]: [
            [
              DESCRIPTOR,
              `${DESCRIPTOR}  yield* kernel.sched.yield();\n  if (!(fd instanceof Errno)) kernel.trace.emit({ type: "dma_buf.fd", fd: kernel.current.files.get(fd) instanceof Errno ? -1 : fd, ino: dmabuf.ino });\n`,
            ],
          ],
        },
        (m) => m.closedByNumber(),
      ),
    fixed: () => here(closedByNumber()),
    kind: "use-after-free",
    says: /DmaBuf\.ino/,
  },
  {
    id: "H17",
    what: "a descriptor is installed before its number is copied out, which fails",
    broken: () =>
      edited<typeof Descriptor>(
        "test/explore/bugs/scenes/descriptor.ts",
        {
          "src/kernel/dma_buf/system_heap.ts": [
            ["  data.fd = fd;\n", "  data.fd = fd;\n  dmaBufFdInstall(kernel.current, dmabuf, fd);\n"],
            ["    files.putUnused(fd);\n    dmaBufPut(dmabuf);\n    return EFAULT;\n", "    return EFAULT;\n"],
            ["  dmaBufFdInstall(kernel.current, dmabuf, fd);\n  return 0;", "  return 0;"],
          ],
        },
        (m) => m.copiesOut(),
      ),
    fixed: () => here(copiesOut()),
    kind: "invariant",
    says: /a descriptor that nobody knows/,
  },
  {
    id: "H18",
    what: "two threads build the table through which the CPU sees a udmabuf, and one is lost",
    broken: () =>
      edited<typeof CpuAccess>(
        "test/explore/bugs/scenes/cpu_access.ts",
        {
          "src/kernel/dma_buf/udmabuf.ts": [
            [
              "    if (sgt instanceof Errno) return sgt;\n    u.cpuSgt = sgt;",
              "    if (sgt instanceof Errno) return sgt;\n    yield* dmabuf.kernel.sched.yield();\n    u.cpuSgt = sgt;",
            ],
          ],
        },
        (m) => m.cpuAccess(),
      ),
    fixed: () => here(cpuAccess()),
    kind: "invariant",
    says: /built twice/,
  },
  {
    id: "H19",
    what: "attach looks at the device of a buffer that the last close and the removal have taken away",
    broken: () =>
      edited<typeof BufferLifetime>(
        LIFETIME,
        {
          [EXPORTER]: [
            [
              ATTACH,
              `    const { vdev } = privOf(dmabuf);\n    if (vdev !== undefined) {\n      yield* vdev.memoryLock.downRead();\n      const mine = vdev.vdev.kernel === dmabuf.kernel;\n      vdev.memoryLock.upRead();\n      if (!mine) return ENODEV;\n    }\n${ATTACH}`,
            ],
          ],
        },
        (m) => m.bufferLifetime({ tasks: ["close", "unbind", "import"] }),
      ),
    fixed: () => here(bufferLifetime({ tasks: ["close", "unbind", "import"] })),
    kind: "use-after-free",
    says: /VfioDevice/,
  },
  {
    id: "H20",
    what: "a fault of a mapped buffer takes the memory lock of a device that the close has let go of",
    broken: () => here(mappedBuffer("as proposed")),
    fixed: () => here(mappedBuffer("with the cure")),
    kind: "use-after-free",
    says: /VfioDevice/,
  },
];
