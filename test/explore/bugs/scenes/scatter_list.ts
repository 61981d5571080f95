/** An importer maps a buffer of 8 GiB, over the host bridge. */

import { revokeRefcount } from "../../../../src/explore/scenarios/revoke_refcount.ts";
import { InvariantBroken, type Scenario } from "../../../../src/explore/tasks.ts";

const SIZE = 8n << 30n;
const PAGE = 0x1000n;

export const scatterList = (): Scenario =>
  revokeRefcount((world) => {
    const [range] = world.buffer.physVec;
    if (range === undefined) throw new TypeError("a buffer of nothing");
    Object.assign(world.buffer, { size: SIZE, physVec: [{ paddr: range.paddr, len: SIZE }] });
    const { importer } = world;
    const map = importer.map.bind(importer);
    importer.map = function* () {
      const error = yield* map();
      if (error !== undefined) return error;
      let total = 0n;
      for (const { address, length } of importer.sgt?.entries ?? []) {
        if ((address | length) % PAGE !== 0n)
          throw new InvariantBroken("an entry of the scatter list begins or ends in the middle of a page");
        total += length;
      }
      if (total !== SIZE) throw new InvariantBroken(`the scatter list shows ${total} bytes of a buffer of ${SIZE}`);
      return undefined;
    };
  });
