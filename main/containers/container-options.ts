/**
 * What the Docker API gets for a container of ours: pure, so that the translation of a Pod's fields is a table.
 * Docker semantics: an entrypoint given without a cmd drops the image's cmd, as Kubernetes wants it.
 */
import type { ContainerMount, ContainerSpecification, SandboxSpecification } from "./container-engine.ts";
import { containerLabels, ownerLabels } from "./container-labels.ts";

/** Where the helper binary appears in every side-car (read-only volume). */
export const helperDirectory = "/.podyard";
export const helperPath = `${helperDirectory}/podyard-init`;

/** As the kubelet's containerLogMaxSize and containerLogMaxFiles. */
const logConfiguration = { Type: "json-file", Config: { "max-size": "10m", "max-file": "5" } };

export interface SandboxContext {
  readonly hostId: string;
  readonly image: string;
  readonly helperVolume: string;
}

export function sandboxOptions(specification: SandboxSpecification, context: SandboxContext) {
  return {
    Image: context.image,
    Hostname: specification.hostname,
    Labels: ownerLabels(context.hostId, specification, "sandbox"),
    HostConfig: {
      NetworkMode: "none",
      IpcMode: "shareable",
      Sysctls: { ...specification.sysctls },
      RestartPolicy: { Name: "" },
      LogConfig: { Type: "none", Config: {} },
      ReadonlyRootfs: true,
      CapDrop: ["ALL"],
      SecurityOpt: ["no-new-privileges"],
      // Keeps the volume in use for the life of the Pod: nobody can prune it between two side-cars.
      Mounts: [{ Type: "volume", Source: context.helperVolume, Target: helperDirectory, ReadOnly: true }],
    },
  };
}

export function containerOptions(specification: ContainerSpecification, context: SandboxContext & { readonly sandboxId: string }) {
  const namespace = `container:${context.sandboxId}`;
  return {
    Image: specification.image,
    Labels: containerLabels(context.hostId, specification),
    ...(specification.command === undefined ? {} : { Entrypoint: [...specification.command] }),
    ...(specification.args === undefined ? {} : { Cmd: [...specification.args] }),
    Env: specification.environment.map(({ name, value }) => `${name}=${value}`),
    ...(specification.workingDirectory === undefined ? {} : { WorkingDir: specification.workingDirectory }),
    ...(specification.user === undefined ? {} : { User: specification.user }),
    ...(specification.stopSignal === undefined ? {} : { StopSignal: specification.stopSignal }),
    OpenStdin: specification.stdin,
    StdinOnce: specification.stdinOnce,
    Tty: specification.terminal,
    // The Pod's probes decide, not the image's HEALTHCHECK.
    Healthcheck: { Test: ["NONE"] },
    HostConfig: {
      NetworkMode: namespace,
      IpcMode: namespace,
      ...(specification.hostProcessNamespace === true ? { PidMode: "host" } : specification.shareProcessNamespace === true ? { PidMode: namespace } : {}),
      RestartPolicy: { Name: "" },
      LogConfig: logConfiguration,
      ...(specification.cpuLimit === undefined ? {} : { NanoCpus: specification.cpuLimit }),
      ...(specification.cpuShares === undefined ? {} : { CpuShares: specification.cpuShares }),
      ...(specification.memoryLimit === undefined ? {} : { Memory: specification.memoryLimit, MemorySwap: specification.memoryLimit }),
      ...(specification.groups === undefined ? {} : { GroupAdd: [...specification.groups] }),
      Privileged: specification.privileged ?? false,
      ReadonlyRootfs: specification.readOnlyRootFileSystem ?? false,
      CapAdd: [...(specification.capabilitiesAdd ?? [])],
      CapDrop: [...(specification.capabilitiesDrop ?? [])],
      SecurityOpt: securityOptions(specification),
      Mounts: [...specification.mounts.map(bindMount), { Type: "volume", Source: context.helperVolume, Target: helperDirectory, ReadOnly: true }],
    },
  };
}

function securityOptions(specification: ContainerSpecification): string[] {
  return [
    ...(specification.noNewPrivileges === true ? ["no-new-privileges"] : []),
    ...(specification.seccompProfile === "Unconfined" ? ["seccomp=unconfined"] : []),
  ];
}

const propagations = { None: "rprivate", HostToContainer: "rslave", Bidirectional: "rshared" } as const;

/** As a mount, not a bind string: a path may hold a colon, and a missing source is an error instead of a new directory. */
function bindMount(mount: ContainerMount) {
  return {
    Type: "bind",
    Source: mount.hostPath,
    Target: mount.containerPath,
    ReadOnly: mount.readOnly,
    BindOptions: { Propagation: propagations[mount.propagation ?? "None"] },
  };
}
