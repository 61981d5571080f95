/**
 * Kernel outcomes that are not success.
 *
 * A kernel function returns its value or one of these singletons, and the
 * caller narrows with `instanceof Errno`. Nothing is thrown: a throw means a
 * broken invariant (`KernelBug`) or a misused TypeScript API. Numbers are those
 * of x86-64 Linux.
 */
export class Errno {
  /** Symbolic name, `"ENODEV"`. */
  readonly name: string;
  /** Positive number, as `errno` holds it. */
  readonly code: number;
  /** What it means in general, in a few words. */
  readonly meaning: string;

  constructor(name: string, code: number, meaning: string) {
    this.name = name;
    this.code = code;
    this.meaning = meaning;
  }

  toString(): string {
    return this.name;
  }
}

const byCode = new Map<number, Errno>();

function define(name: string, code: number, meaning: string): Errno {
  const e = new Errno(name, code, meaning);
  byCode.set(code, e);
  return e;
}

export const EPERM: Errno = define("EPERM", 1, "not permitted");
export const ENOENT: Errno = define("ENOENT", 2, "nothing by that name or id");
export const ESRCH: Errno = define("ESRCH", 3, "no such process");
export const EINTR: Errno = define("EINTR", 4, "interrupted by a signal");
export const EIO: Errno = define("EIO", 5, "the device did not answer");
export const ENXIO: Errno = define("ENXIO", 6, "no such device or address");
export const E2BIG: Errno = define("E2BIG", 7, "larger than this kernel understands");
export const ENOEXEC: Errno = define("ENOEXEC", 8, "not a program this kernel can start");
export const EBADF: Errno = define("EBADF", 9, "not an open descriptor of the right kind");
export const ECHILD: Errno = define("ECHILD", 10, "no such child");
export const EAGAIN: Errno = define("EAGAIN", 11, "not now; try again");
export const ENOMEM: Errno = define("ENOMEM", 12, "out of memory, or over a limit on it");
export const EACCES: Errno = define("EACCES", 13, "access refused");
export const EFAULT: Errno = define("EFAULT", 14, "an address that cannot be accessed");
export const ENOTBLK: Errno = define("ENOTBLK", 15, "not a block device");
export const EBUSY: Errno = define("EBUSY", 16, "in use");
export const EEXIST: Errno = define("EEXIST", 17, "already there");
export const EXDEV: Errno = define("EXDEV", 18, "crosses devices");
export const ENODEV: Errno = define("ENODEV", 19, "no such device, or it is not there now");
export const ENOTDIR: Errno = define("ENOTDIR", 20, "not a directory");
export const EISDIR: Errno = define("EISDIR", 21, "a directory");
export const EINVAL: Errno = define("EINVAL", 22, "invalid argument");
export const ENFILE: Errno = define("ENFILE", 23, "too many open files in the system");
export const EMFILE: Errno = define("EMFILE", 24, "too many open files in the process");
export const ENOTTY: Errno = define("ENOTTY", 25, "no such ioctl on this file");
export const ETXTBSY: Errno = define("ETXTBSY", 26, "the file is a running program");
export const EFBIG: Errno = define("EFBIG", 27, "file too large");
export const ENOSPC: Errno = define("ENOSPC", 28, "no room left");
export const ESPIPE: Errno = define("ESPIPE", 29, "not seekable");
export const EROFS: Errno = define("EROFS", 30, "read-only");
export const EMLINK: Errno = define("EMLINK", 31, "too many links");
export const EPIPE: Errno = define("EPIPE", 32, "nobody reads this pipe");
export const EDOM: Errno = define("EDOM", 33, "outside the domain of the function");
export const ERANGE: Errno = define("ERANGE", 34, "out of range");
export const EDEADLK: Errno = define("EDEADLK", 35, "would deadlock");
export const EDEADLOCK: Errno = EDEADLK;
export const ENAMETOOLONG: Errno = define("ENAMETOOLONG", 36, "name too long");
export const ENOSYS: Errno = define("ENOSYS", 38, "no such system call");
export const ENOTEMPTY: Errno = define("ENOTEMPTY", 39, "directory not empty");
export const ELOOP: Errno = define("ELOOP", 40, "too many symbolic links");
export const EBADE: Errno = define("EBADE", 52, "invalid exchange");
export const ENODATA: Errno = define("ENODATA", 61, "no data");
export const ETIME: Errno = define("ETIME", 62, "timer expired");
export const EPROTO: Errno = define("EPROTO", 71, "protocol error");
export const EOVERFLOW: Errno = define("EOVERFLOW", 75, "does not fit the type that holds it");
export const EBADFD: Errno = define("EBADFD", 77, "descriptor in the wrong state");
export const ENOTSOCK: Errno = define("ENOTSOCK", 88, "not a socket");
export const EMSGSIZE: Errno = define("EMSGSIZE", 90, "the answer does not fit the buffer");
export const EOPNOTSUPP: Errno = define("EOPNOTSUPP", 95, "not supported here");
export const EADDRINUSE: Errno = define("EADDRINUSE", 98, "address already in use");
export const ENOBUFS: Errno = define("ENOBUFS", 105, "no buffer space");
export const ETIMEDOUT: Errno = define("ETIMEDOUT", 110, "timed out");
export const EALREADY: Errno = define("EALREADY", 114, "already under way");
export const EINPROGRESS: Errno = define("EINPROGRESS", 115, "under way");
export const ESTALE: Errno = define("ESTALE", 116, "stale handle");
export const EDQUOT: Errno = define("EDQUOT", 122, "quota exceeded");
export const ECANCELED: Errno = define("ECANCELED", 125, "cancelled");
/** Inside the kernel, and in a seccomp answer; user space sees EINTR, or nothing. */
export const ERESTARTSYS: Errno = define("ERESTARTSYS", 512, "start the call again after the signal (kernel internal)");
/** Inside the kernel only; user space sees ENOTTY. */
export const ENOIOCTLCMD: Errno = define("ENOIOCTLCMD", 515, "no such ioctl (kernel internal)");

/** The singleton of a positive errno number; a fresh unnamed one for a number that is not listed. */
export function errnoOf(code: number): Errno {
  return byCode.get(code) ?? new Errno(`E${code}`, code, "unlisted error");
}
