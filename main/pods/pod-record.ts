/**
 * `pods/<uid>/pod.json`: what the host must remember of a Pod to take it up again after a crash and cannot read off the
 * machines and containers themselves. Written whole to a temporary name and renamed, before the step it announces.
 */
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";
import type { ContainerState, Pod, ResourceRequirements } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import { setAside, writeAtomically } from "../records/atomic-file.ts";

const time = z.string();
const terminated = z.object({
  exitCode: z.number(),
  signal: z.number().optional(),
  reason: z.string().optional(),
  message: z.string().optional(),
  startedAt: time.optional(),
  finishedAt: time.optional(),
  containerID: z.string().optional(),
});
const state = z.object({ running: z.object({ startedAt: time.optional() }).optional(), terminated: terminated.optional() });

const containerRecord = z.object({
  restartCount: z.number().default(0),
  state: state.optional(),
  lastState: state.optional(),
  image: z.string().optional(),
  imageId: z.string().optional(),
  containerId: z.string().optional(),
  backoff: z.object({ delay: z.number(), at: z.number() }).optional(),
  /** The postStart hook of this attempt has run. */
  postStarted: z.boolean().optional(),
  started: z.boolean().optional(),
  ready: z.boolean().optional(),
  /** The main process of container 0 ended like this; its machine may still have to be stopped. */
  ended: terminated.optional(),
  /** It was ended for a new image and starts again, whatever the restart policy says. */
  replaced: z.boolean().optional(),
  /** What the image says about logging in, so that a running guest stays reachable when the image's record is lost. */
  guest: z.object({ user: z.string().exactOptional(), password: z.string().exactOptional(), port: z.number().exactOptional() }).optional(),
  resources: z.custom<ResourceRequirements>((value) => typeof value === "object" && value !== null).optional(),
});

const podRecord = z.object({
  version: z.literal(1),
  /** As last seen, so that a Pod that vanished is still stopped in its own way. */
  pod: z.custom<Pod>((value) => z.object({ metadata: z.object({ uid: z.string(), name: z.string(), namespace: z.string() }), spec: z.object({ containers: z.array(z.unknown()) }) }).safeParse(value).success),
  startTime: time,
  admitted: z.boolean().default(false),
  failure: z.object({ reason: z.string(), message: z.string() }).optional(),
  disruption: z.object({ reason: z.string(), message: z.string() }).optional(),
  terminating: z.object({ startedAt: time, graceSeconds: z.number() }).optional(),
  containers: z.record(z.string(), containerRecord).default({}),
});

type Mutable<Value> = { -readonly [Key in keyof Value]: Value[Key] };
export type ContainerRecord = Mutable<Omit<z.infer<typeof containerRecord>, "state" | "lastState">> & { state?: ContainerState | undefined; lastState?: ContainerState | undefined };
export type PodRecordData = Mutable<Omit<z.infer<typeof podRecord>, "containers">> & { containers: Record<string, ContainerRecord> };

export class PodRecord {
  readonly directory: string;
  readonly data: PodRecordData;
  #writing: Promise<void> = Promise.resolve();
  #dirty = false;
  #removed = false;

  constructor(directory: string, data: PodRecordData) {
    this.directory = directory;
    this.data = data;
  }

  static create(podsDirectory: string, pod: Pod, now: Date): PodRecord {
    return new PodRecord(join(podsDirectory, pod.metadata?.uid ?? ""), { version: 1, pod, startTime: now.toISOString(), admitted: false, containers: {} });
  }

  container(name: string): ContainerRecord {
    return (this.data.containers[name] ??= { restartCount: 0 });
  }

  /** Resolves once the present data is on disk; calls that come while a write is under way share the next one. */
  save(): Promise<void> {
    if (this.#dirty) return this.#writing;
    this.#dirty = true;
    const write = this.#writing.catch(() => {}).then(() => this.#write());
    this.#writing = write;
    return write;
  }

  /** Deletes the Pod's whole directory. */
  async remove(): Promise<void> {
    this.#removed = true;
    await this.#writing.catch(() => {});
    await rm(this.directory, { recursive: true, force: true });
  }

  async #write(): Promise<void> {
    this.#dirty = false;
    if (this.#removed) return;
    // Written at every step of every Pod: it must outlive a kill of the host; after a power failure nothing runs that it describes.
    await writeAtomically(join(this.directory, "pod.json"), JSON.stringify(this.data), { flush: false });
  }
}

/** Reads all records; one that cannot be read is set aside and reported, never a reason to stop. */
export async function readRecords(podsDirectory: string, logger: Logger): Promise<readonly PodRecord[]> {
  await mkdir(podsDirectory, { recursive: true, mode: 0o700 });
  const records: PodRecord[] = [];
  for (const entry of await readdir(podsDirectory, { withFileTypes: true })) {
    if (!entry.isDirectory()) continue;
    const directory = join(podsDirectory, entry.name);
    const path = join(directory, "pod.json");
    let text: string;
    try {
      text = await readFile(path, "utf8");
    } catch {
      continue;
    }
    try {
      const data = podRecord.parse(JSON.parse(text));
      if (data.pod.metadata?.uid !== entry.name) throw new PodyardError("Corrupt", `It names the Pod ${data.pod.metadata?.uid}.`);
      records.push(new PodRecord(directory, data));
    } catch (error) {
      const aside = await setAside(path);
      logger.warn("A Pod's record cannot be read and was set aside; its machine and containers go on and are taken up again.", { path, aside, error: error instanceof Error ? error.message : String(error) });
    }
  }
  return records;
}
