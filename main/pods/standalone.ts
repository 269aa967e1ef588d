/**
 * A host without a cluster: Pods come from a watched folder of manifests and from `podyard pod apply` (kept in
 * `applied/`), status and events stay here. Each Pod's UID follows from its content, as with static Pods: a changed
 * manifest ends the old Pod gracefully, and the new one begins when nothing of the old is left.
 */
import { watch } from "node:fs";
import { mkdir, readdir, readFile, rm, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { messageOf, PodyardError } from "../contract/errors.ts";
import type { ConfigMap, Pod, PodStatus, Secret } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import type { NodeView, PodReporter, PodSource } from "../kubernetes/cluster.ts";
import { writeAtomically } from "../records/atomic-file.ts";
import type { PodKey } from "./pod-runtime.ts";
import { contentUid, parseManifests, type StandaloneObject } from "./standalone-manifests.ts";
import { StandaloneObjects } from "./standalone-objects.ts";

export interface StandaloneOptions {
  readonly manifestsDirectory?: string;
  readonly dataDirectory: string;
  readonly node: NodeView;
  readonly logger: Logger;
}

export interface ReportedEvent {
  readonly time: Date;
  readonly type: "Normal" | "Warning";
  readonly reason: string;
  readonly message: string;
  /** `namespace/pod` */
  readonly pod: string;
  readonly container: string | undefined;
  readonly count: number;
}

export interface Standalone {
  readonly source: PodSource;
  readonly reporter: PodReporter;
  readonly objects: StandaloneObjects;
  /** Reads everything and begins to watch. */
  start(): Promise<AsyncDisposable>;
  /** Errors: InvalidArgument (nothing of the manifest is applied then). */
  apply(manifest: string, source: string): Promise<readonly { readonly kind: string; readonly name: string; readonly action: "created" | "configured" | "unchanged" }[]>;
  /** Begins the Pod's graceful end. Errors: NotFound; Conflict if the Pod is a file of the manifests folder. */
  deletePod(pod: PodKey, graceSeconds?: number): Promise<void>;
  /** The latest events, oldest first. */
  events(): readonly ReportedEvent[];
  onEvent(listener: (event: ReportedEvent) => void): () => void;
}

const EVENTS_KEPT = 1000;
/** Editors write a file in several steps; this long nothing must change before it is read. */
const SETTLE = 200;
const SOURCE_ANNOTATION = "kubernetes.io/config.source";

export function createStandalone(options: StandaloneOptions): Standalone {
  const { node, logger } = options;
  const appliedDirectory = join(options.dataDirectory, "applied");
  const host = `${node.name} ${resolve(options.dataDirectory)}`;
  const objects = new StandaloneObjects();
  const pods = new Map<string, Pod>();
  const subscribers = new Set<(uid: string) => void>();
  const eventListeners = new Set<(event: ReportedEvent) => void>();
  const events: ReportedEvent[] = [];
  const synced = Promise.withResolvers<void>();
  /** The last good content of each file: a manifest with a mistake does not end the Pods it described before. */
  const lastGood = new Map<string, readonly StandaloneObject[]>();
  let turn: Promise<void> = Promise.resolve();

  function inTurn<Value>(act: () => Promise<Value>): Promise<Value> {
    const result = turn.then(act);
    turn = result.then(
      () => {},
      () => {},
    );
    return result;
  }

  function set(uid: string, pod: Pod | undefined): void {
    if (pod === undefined) pods.delete(uid);
    else pods.set(uid, pod);
    for (const subscriber of subscribers) subscriber(uid);
  }

  async function readDirectory(directory: string): Promise<readonly { readonly path: string; readonly objects: readonly StandaloneObject[]; readonly createdAt: Date }[]> {
    const found: { path: string; objects: readonly StandaloneObject[]; createdAt: Date }[] = [];
    const names = (await readdir(directory, { withFileTypes: true })).filter((entry) => !entry.name.startsWith(".") && /\.(ya?ml|json)$/.test(entry.name)).map(({ name }) => name);
    for (const path of names.sort().map((name) => join(directory, name))) {
      try {
        const [text, facts] = [await readFile(path, "utf8"), await stat(path)];
        const parsed = parseManifests(text, path);
        lastGood.set(path, parsed);
        found.push({ path, objects: parsed, createdAt: facts.mtime });
      } catch (error) {
        logger.error("A manifest cannot be used; what it described before stays.", { path, error: messageOf(error) });
        found.push({ path, objects: lastGood.get(path) ?? [], createdAt: new Date() });
      }
    }
    return found;
  }

  /** Reads all files and brings `pods` and `objects` in line with them. */
  async function read(): Promise<void> {
    await mkdir(appliedDirectory, { recursive: true, mode: 0o700 });
    const directories = [...(options.manifestsDirectory === undefined ? [] : [{ directory: options.manifestsDirectory, origin: "file" }]), { directory: appliedDirectory, origin: "applied" }];
    const wanted = new Map<string, Pod>();
    const names = new Map<string, string>();
    const secrets = new Map<string, Secret>();
    const configMaps = new Map<string, ConfigMap>();
    for (const { directory, origin } of directories) {
      for (const file of await readDirectory(directory)) {
        for (const item of file.objects) {
          const key = keyOf(item.object);
          if (item.kind === "Secret") secrets.set(key, item.object);
          else if (item.kind === "ConfigMap") configMaps.set(key, item.object);
          else {
            const other = names.get(key);
            if (other !== undefined) {
              logger.error("Two manifests describe a Pod of the same name; the first one counts.", { pod: key, path: file.path, other });
              continue;
            }
            names.set(key, file.path);
            const pod = completed(item.object, origin, file.createdAt);
            wanted.set(pod.metadata?.uid ?? "", pod);
          }
        }
      }
    }
    objects.replace(secrets, configMaps);
    for (const [uid, pod] of pods) {
      const now = wanted.get(uid);
      if (now === undefined) beginDeletion(uid, pod);
      else if (now.metadata?.deletionTimestamp !== undefined && pod.metadata?.deletionTimestamp === undefined) set(uid, { ...now, ...(pod.status === undefined ? {} : { status: pod.status }) });
    }
    for (const [uid, pod] of wanted) {
      const predecessor = [...pods.values()].some((other) => keyOf(other) === keyOf(pod));
      if (!pods.has(uid) && !predecessor) set(uid, pod);
    }
  }

  function beginDeletion(uid: string, pod: Pod, graceSeconds = pod.spec?.terminationGracePeriodSeconds ?? 30): void {
    const before = pod.metadata?.deletionGracePeriodSeconds;
    if (before !== undefined && before <= graceSeconds) return;
    set(uid, { ...pod, metadata: { ...pod.metadata, deletionTimestamp: new Date(Date.now() + graceSeconds * 1000).toISOString(), deletionGracePeriodSeconds: graceSeconds } });
  }

  function completed(pod: Pod, origin: string, createdAt: Date): Pod {
    const uid = pod.metadata?.uid ?? contentUid(host, pod);
    return {
      ...pod,
      metadata: {
        ...pod.metadata,
        uid,
        generation: pod.metadata?.generation ?? 1,
        creationTimestamp: pod.metadata?.creationTimestamp ?? createdAt.toISOString(),
        annotations: { ...pod.metadata?.annotations, [SOURCE_ANNOTATION]: origin },
      },
      spec: { ...pod.spec, containers: pod.spec?.containers ?? [], nodeName: node.name },
    };
  }

  function appliedPath(kind: string, object: { readonly metadata?: Pod["metadata"] }): string {
    return join(appliedDirectory, `${kind.toLowerCase()}_${object.metadata?.namespace ?? "default"}_${object.metadata?.name ?? ""}.json`);
  }

  function findPod(key: PodKey): readonly [string, Pod] {
    for (const [uid, pod] of pods) if (pod.metadata?.namespace === key.namespace && pod.metadata.name === key.name && (key.uid === undefined || key.uid === uid)) return [uid, pod];
    throw new PodyardError("NotFound", `pod "${key.namespace}/${key.name}" does not exist`);
  }

  const reporter: PodReporter = {
    async writeStatus(pod: Pod, status: PodStatus) {
      const known = pods.get(pod.metadata?.uid ?? "");
      if (known === undefined) return "gone";
      const updated = { ...known, status };
      // Not announced: the sync loop has just told us, and nobody else reads it here.
      pods.set(pod.metadata?.uid ?? "", updated);
      return updated;
    },
    async remove(pod: Pod) {
      await inTurn(async () => {
        const uid = pod.metadata?.uid ?? "";
        const path = appliedPath("Pod", pod);
        const applied = await readFile(path, "utf8").then(
          (text) => parseManifests(text, path)[0]?.object.metadata,
          () => undefined,
        );
        // A successor of the same name that waits for this one stays, and so does the same manifest applied once more.
        if (applied?.uid === uid && applied.deletionTimestamp !== undefined) await rm(path, { force: true });
        if (pods.has(uid)) set(uid, undefined);
        await read();
      });
    },
    event(pod, type, reason, message, container) {
      const name = keyOf(pod);
      const last = events.findLastIndex((event) => event.pod === name && event.reason === reason && event.message === message && event.container === container);
      const event: ReportedEvent = { time: new Date(), type, reason, message, pod: name, container, count: (events[last]?.count ?? 0) + 1 };
      if (last >= 0) events.splice(last, 1);
      events.push(event);
      if (events.length > EVENTS_KEPT) events.shift();
      logger[type === "Warning" ? "warn" : "info"](message, { pod: name, reason, ...(container === undefined ? {} : { container }) });
      for (const listener of eventListeners) listener(event);
    },
  };

  return {
    source: {
      synced: synced.promise,
      current: () => pods,
      subscribe(onChange) {
        subscribers.add(onChange);
        return () => subscribers.delete(onChange);
      },
    },
    reporter,
    objects,
    events: () => events,
    onEvent(listener) {
      eventListeners.add(listener);
      return () => eventListeners.delete(listener);
    },
    async start() {
      if (options.manifestsDirectory !== undefined) {
        const facts = await stat(options.manifestsDirectory).catch(() => undefined);
        if (facts?.isDirectory() !== true) throw new PodyardError("InvalidArgument", `--manifests: ${options.manifestsDirectory} is not a folder.`);
      }
      await inTurn(read);
      synced.resolve();
      let timer: NodeJS.Timeout | undefined;
      const later = () => {
        clearTimeout(timer);
        timer = setTimeout(() => void inTurn(read).catch((error: unknown) => logger.error("The manifests could not be read.", { error: messageOf(error) })), SETTLE);
      };
      const watcher = options.manifestsDirectory === undefined ? undefined : watch(options.manifestsDirectory, later);
      watcher?.on("error", (error) => logger.error("The manifests folder can no longer be watched.", { error: messageOf(error) }));
      return {
        async [Symbol.asyncDispose]() {
          clearTimeout(timer);
          watcher?.close();
          await turn;
        },
      };
    },
    apply: (manifest, source) =>
      inTurn(async () => {
        const parsed = parseManifests(manifest, source);
        for (const { kind, object } of parsed) {
          const known = kind === "Pod" ? [...pods.values()].find((pod) => keyOf(pod) === keyOf(object)) : undefined;
          if (known?.metadata?.annotations?.[SOURCE_ANNOTATION] === "file") throw new PodyardError("Conflict", `Pod ${keyOf(object)} comes from the manifests folder; change it there.`);
        }
        const results: { kind: string; name: string; action: "created" | "configured" | "unchanged" }[] = [];
        for (const item of parsed) {
          const path = appliedPath(item.kind, item.object);
          const before = await readFile(path, "utf8").catch(() => undefined);
          const object = item.kind === "Pod" ? { ...item.object, metadata: { ...item.object.metadata, uid: contentUid(host, item.object) } } : item.object;
          const content = JSON.stringify(object, undefined, 2);
          const action = before === undefined ? "created" : before === content ? "unchanged" : "configured";
          if (action !== "unchanged") await writeAtomically(path, content);
          results.push({ kind: item.kind, name: keyOf(item.object), action });
        }
        await read();
        return results;
      }),
    deletePod: (key, graceSeconds) =>
      inTurn(async () => {
        const [uid, pod] = findPod(key);
        if (pod.metadata?.annotations?.[SOURCE_ANNOTATION] === "file") {
          throw new PodyardError("Conflict", `Pod ${keyOf(pod)} comes from the manifests folder and would come back.`, { fix: "Remove its file from the folder." });
        }
        beginDeletion(uid, pod, graceSeconds);
        const deleting = pods.get(uid);
        // Kept with its deletion time, so that a restarted host ends it as it was asked to.
        if (deleting !== undefined) {
          const { status: _status, ...kept } = deleting;
          await writeAtomically(appliedPath("Pod", pod), JSON.stringify(kept, undefined, 2));
        }
      }),
  };
}

function keyOf(object: { readonly metadata?: Pod["metadata"] }): string {
  return `${object.metadata?.namespace ?? "default"}/${object.metadata?.name ?? ""}`;
}
