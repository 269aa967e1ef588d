/**
 * What the host does inside a guest, over SSH: wait for it, mount volumes, run the main process under the supervisor,
 * exec, copy logs, power it off. One multiplexed connection per machine, reconnected when it breaks; the main process
 * outlives both the connection and the host.
 */
import type { AttachRequest, ExecRequest, ProcessExit, ProcessSession } from "../contract/streams.ts";
import type { VirtualMachine } from "./virtual-machine.ts";

export interface GuestLogin {
  readonly user: string;
  readonly password?: string;
  /** PEM or OpenSSH private key. */
  readonly privateKey?: string;
  readonly passphrase?: string;
  readonly port: number;
  readonly keyExchangeAlgorithms?: readonly string[];
}

/** `index` names the entry of VirtualMachineSpecification.sharedPaths. */
export interface GuestMount {
  readonly index: number;
  readonly mountPath: string;
  readonly readOnly: boolean;
}

export interface MainProcessSpecification {
  /** Identifies the attempt: starting the same attempt twice starts one process. */
  readonly attempt: string;
  readonly argv: readonly Buffer[];
  readonly environment: Readonly<Record<string, string>>;
  readonly workingDirectory?: string;
  readonly stdin: boolean;
  readonly stdinOnce: boolean;
  readonly terminal: boolean;
  /** Numeric; absent = the login user. */
  readonly userId?: number;
  readonly groupId?: number;
  readonly terminationMessagePath: string;
}

export type MainProcessState =
  | { readonly state: "absent" }
  | { readonly state: "running"; readonly processId: number; readonly startedAt: Date }
  | { readonly state: "exited"; readonly startedAt: Date; readonly finishedAt: Date; readonly exit: ProcessExit; readonly terminationMessage?: string };

export interface Guest extends AsyncDisposable {
  /**
   * Resolves when SSH answers and the supervisor is in place. Retries until the signal aborts, except on errors that
   * cannot heal (Unauthorized: wrong password or key; Forbidden: host key changed).
   */
  waitReady(signal: AbortSignal): Promise<void>;
  /** Mounts the share and binds each entry to its mountPath (creating it). Idempotent. */
  mount(mounts: readonly GuestMount[]): Promise<void>;
  /** Hostname of the guest, and names for /etc/hosts. */
  configure(configuration: { readonly hostname: string; readonly hosts: readonly { readonly ip: string; readonly names: readonly string[] }[] }): Promise<void>;
  exec(request: ExecRequest): Promise<ProcessSession>;
  /** Idempotent by attempt. Errors: InvalidArgument (no such executable: the exit code is 127, not runnable: 126). */
  startMainProcess(specification: MainProcessSpecification): Promise<void>;
  mainProcess(): Promise<MainProcessState>;
  /** Resolves when the main process of the attempt has exited; survives reconnects. */
  waitMainProcess(signal: AbortSignal): Promise<Extract<MainProcessState, { state: "exited" }>>;
  /** Sends a signal (15, 9) to the main process's group. */
  signalMainProcess(signalNumber: number): Promise<void>;
  attach(request: AttachRequest): Promise<ProcessSession>;
  resizeMainTerminal(columns: number, rows: number): Promise<void>;
  /**
   * Appends the main process's output, in the CRI log format (`<RFC3339Nano> stdout|stderr F|P <line>`), to a file of the
   * host, byte for byte as the supervisor wrote it, starting at the file's present size: no line is lost or doubled over
   * reconnects and host restarts. Resolves when the process ended and all was copied.
   */
  copyOutput(logFile: string, signal: AbortSignal): Promise<void>;
  /** Asks the guest's own operating system to shut down. */
  shutDown(): Promise<void>;
  /** CPU and memory as the guest sees them; undefined if it cannot say. */
  statistics(): Promise<{ readonly memoryUsedBytes: number; readonly memoryTotalBytes: number } | undefined>;
}

/** `knownHostKey` is the pinned key of this machine's first contact; `onHostKey` reports it for the record. */
export interface Guests {
  open(machine: VirtualMachine, login: GuestLogin, options: { readonly stateDirectory: string }): Guest;
}
