/** Events of the scheduler, and the kernel's log. */
export type SchedEvent =
  | { readonly type: "sched.lock"; readonly lock: string; readonly mode: "read" | "write" }
  | { readonly type: "sched.unlock"; readonly lock: string }
  | { readonly type: "sched.block"; readonly on: string }
  | { readonly type: "sched.wake"; readonly woken: string }
  | { readonly type: "sched.printk"; readonly text: string };
