/** What the engine says of a container, checked and translated. https://docs.docker.com/reference/api/engine/version/v1.41/#operation/ContainerInspect */
import { z } from "zod";
import type { ContainerInfo, ContainerState } from "./container-engine.ts";
import { label, type Role } from "./container-labels.ts";
import { kernelKilledForMemory } from "./kernel-log.ts";

const inspectSchema = z.object({
  Id: z.string(),
  Created: z.string(),
  Name: z.string(),
  Image: z.string(),
  State: z.object({
    Status: z.enum(["created", "running", "paused", "restarting", "removing", "exited", "dead"]),
    Pid: z.number(),
    ExitCode: z.number(),
    OOMKilled: z.boolean(),
    Error: z.string(),
    StartedAt: z.string(),
    FinishedAt: z.string(),
  }),
  Config: z.object({
    Image: z.string(),
    Tty: z.boolean(),
    OpenStdin: z.boolean(),
    Labels: z.record(z.string(), z.string()).nullish(),
  }),
  HostConfig: z.object({ Memory: z.number().nullish() }),
});

/** A container of ours with what only this folder needs to know. */
export interface InspectedContainer {
  readonly info: ContainerInfo;
  readonly hostId: string | undefined;
  readonly role: Role | undefined;
  /** Docker's name, without the leading slash. */
  readonly dockerName: string;
  readonly terminal: boolean;
  readonly stdin: boolean;
}

export function inspectedContainer(answer: unknown): InspectedContainer {
  const { Id, Created, Name, Image, State, Config, HostConfig } = inspectSchema.parse(answer);
  const labels = Config.Labels ?? {};
  const role = labels[label.role];
  const startedAt = dateOf(State.StartedAt);
  const hasRun = startedAt !== undefined;
  const state: ContainerState = State.Status === "removing" ? "dead" : State.Status;
  const ended = state === "exited" || state === "dead";
  return {
    info: {
      id: Id,
      podUid: labels[label.podUid] ?? "",
      namespace: labels[label.namespace] ?? "",
      podName: labels[label.podName] ?? "",
      name: labels[label.container] ?? "",
      restartCount: Number(labels[label.restartCount] ?? 0),
      state,
      image: Config.Image,
      imageId: Image,
      createdAt: new Date(Created),
      startedAt,
      finishedAt: ended ? dateOf(State.FinishedAt) : undefined,
      // A container whose start failed stays "created" with exit code 127 or 128 and the cause in Error.
      exitCode: ended || (!hasRun && State.Error !== "") ? State.ExitCode : undefined,
      outOfMemoryKilled: State.OOMKilled || (ended && State.ExitCode === 137 && (HostConfig.Memory ?? 0) > 0 && kernelKilledForMemory(Id)),
      error: State.Error === "" ? undefined : State.Error,
      processId: State.Pid === 0 ? undefined : State.Pid,
      labels,
    },
    hostId: labels[label.host],
    role: role === "sandbox" || role === "side-car" ? role : undefined,
    dockerName: Name.replace(/^\//, ""),
    terminal: Config.Tty,
    stdin: Config.OpenStdin,
  };
}

/** Docker writes year 1 for "never". */
function dateOf(text: string): Date | undefined {
  return text === "" || text.startsWith("0001-") ? undefined : new Date(text);
}
