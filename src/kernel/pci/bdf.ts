/** Requester ids and the names sysfs gives to functions. */

/** bus << 8 | device << 3 | function. */
export const ridOf = (bus: number, device: number, fn: number): number => (bus << 8) | (device << 3) | fn;

const digits = (v: number, n: number): string => v.toString(16).padStart(n, "0");

/** `0000:01:00.0`. */
export const bdfName = (rid: number): string => `0000:${digits(rid >> 8, 2)}:${digits((rid >> 3) & 31, 2)}.${rid & 7}`;
