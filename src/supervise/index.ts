export * from "./numbers.ts";
export {
  answer,
  type CallObserver,
  CONTINUE,
  type Handler,
  type Hooks,
  type Outcome,
  type SupervisedFiles,
  type SupervisedProcess,
  type SuperviseOptions,
  type Supervisor,
  type Target,
  type TrappedCall,
  type When,
} from "./types.ts";
