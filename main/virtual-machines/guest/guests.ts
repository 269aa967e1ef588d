/** Opens guests: one set of SSH connections per machine, and the supervisor's binaries read once for all of them. */
import type { Logger } from "../../contract/logger.ts";
import type { GuestLogin, Guests } from "../guest.ts";
import type { VirtualMachine } from "../virtual-machine.ts";
import { createHostKeyPin } from "./host-key.ts";
import { createConnections } from "./ssh-connections.ts";
import { createSshGuest } from "./ssh-guest.ts";
import { readSupervisorBinaries } from "./supervisor-installation.ts";
import type { SupervisorBinary } from "./supervisor-installation.ts";

export interface GuestsOptions {
  /** Where `podyard-supervisor-<os>-<arch>` lie; native/supervisor/build.mjs makes them. */
  readonly supervisorDirectory: string;
  readonly logger: Logger;
  /** True where the driver emulates the guest's processor (accelerator `tcg`): other ciphers are fast there. */
  readonly emulated?: boolean;
  /** Milliseconds; see SshConnectionOptions. An emulated guest needs seconds for a key exchange. */
  readonly timeouts?: { readonly dial?: number; readonly greeting?: number; readonly ready?: number };
}

export function createGuests({ supervisorDirectory, logger, emulated, timeouts }: GuestsOptions): Guests {
  let binaries: Promise<readonly SupervisorBinary[]> | undefined;
  const readBinaries = (): Promise<readonly SupervisorBinary[]> => {
    // Not kept if nothing was there: they may be built while the host runs.
    binaries ??= readSupervisorBinaries(supervisorDirectory).then(
      (found) => (found.length === 0 ? ((binaries = undefined), found) : found),
      (error: unknown) => {
        binaries = undefined;
        throw error;
      },
    );
    return binaries;
  };
  return {
    open(machine: VirtualMachine, login: GuestLogin, { stateDirectory }) {
      const guestLogger = logger.child({ machine: machine.specification.name });
      const connections = createConnections({
        dial: (port, signal) => machine.dial(port, signal),
        login,
        hostKey: createHostKeyPin(stateDirectory),
        emulated: emulated ?? false,
        timeouts: { dial: timeouts?.dial ?? 3_000, greeting: timeouts?.greeting ?? 5_000, ready: timeouts?.ready ?? 30_000 },
        logger: guestLogger,
      });
      return createSshGuest({ machine, connections, binaries: readBinaries, logger: guestLogger });
    },
  };
}
