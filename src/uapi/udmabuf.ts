/** /dev/udmabuf: dma-bufs made of memfd pages (include/uapi/linux/udmabuf.h). The result of a command is a descriptor. */
import { _IOW } from "./ioctl.ts";
import { struct } from "./struct.ts";

export const UDMABUF_FLAGS_CLOEXEC = 0x01;

/** `offset` and `size` are multiples of the page size; the memfd is sealed against shrinking and not against writing. */
export const UdmabufCreate = struct("udmabuf_create", { memfd: "u32", flags: "u32", offset: "u64", size: "u64" });
export const UDMABUF_CREATE = _IOW("u", 0x42, UdmabufCreate);

export const UdmabufCreateItem = struct("udmabuf_create_item", { memfd: "u32", __pad: "u32", offset: "u64", size: "u64" });

/** One buffer out of `count` pieces, one after the other. */
export const UdmabufCreateList = struct("udmabuf_create_list", {
  flags: "u32",
  count: "u32",
  list: [UdmabufCreateItem, "tail"],
});
export const UDMABUF_CREATE_LIST = _IOW("u", 0x43, UdmabufCreateList);
