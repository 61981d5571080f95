/** poll(2) (asm-generic/poll.h). */
import { struct } from "./struct.ts";

export const POLLIN = 0x0001;
export const POLLPRI = 0x0002;
export const POLLOUT = 0x0004;
/** The last three come back whether asked for or not. */
export const POLLERR = 0x0008;
export const POLLHUP = 0x0010;
export const POLLNVAL = 0x0020;
export const POLLRDNORM = 0x0040;
export const POLLRDBAND = 0x0080;
export const POLLWRNORM = 0x0100;
export const POLLWRBAND = 0x0200;
export const POLLRDHUP = 0x2000;

export const Pollfd = struct("pollfd", { fd: "s32", events: "s16", revents: "s16" });
