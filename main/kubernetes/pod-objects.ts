/**
 * Secrets and ConfigMaps that Pods refer to, each watched alone, because a node may not list more than what its Pods name;
 * an object is watched while a Pod uses it, and an immutable one only read. Services are watched all together, service
 * accounts and tokens asked for.
 */
import { hasCode } from "../contract/errors.ts";
import type { ConfigMap, Pod, Secret, Service, ServiceAccount } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import type { KubernetesClient } from "./client.ts";
import type { PodObjects } from "./cluster.ts";
import { configMaps, secrets, serviceAccounts, services, tokenRequests } from "./resources.ts";
import type { Resource } from "./resources.ts";
import { startWatchLoop, withoutManagedFields } from "./watch-loop.ts";

export interface ApiPodObjectsOptions {
  readonly client: KubernetesClient;
  readonly logger: Logger;
}

interface Watched {
  readonly users: Set<string>;
  /** Settles with the first answer: true = `object` is known, false = not yet (forbidden or away). */
  readonly first: Promise<boolean>;
  readonly stop: () => Promise<void>;
  isKnown: boolean;
  object: Secret | ConfigMap | undefined;
}

type Kind = "Secret" | "ConfigMap";

const kinds: Readonly<Record<Kind, Resource<Secret | ConfigMap>>> = { Secret: secrets, ConfigMap: configMaps };

export class ApiPodObjects implements PodObjects {
  readonly #options: ApiPodObjectsOptions;
  readonly #watched = new Map<string, Watched>();
  readonly #listeners = new Set<(podUids: readonly string[]) => void>();
  readonly #services = new Map<string, Service>();
  readonly #servicesSynced: Promise<void>;
  readonly #markServicesSynced: () => void;

  constructor(options: ApiPodObjectsOptions) {
    this.#options = options;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#servicesSynced = promise;
    this.#markServicesSynced = resolve;
  }

  /** Watches Services; disposing ends all watches. */
  start(): AsyncDisposable {
    const key = (service: Service): string => `${service.metadata?.namespace}/${service.metadata?.name}`;
    const watch = startWatchLoop({
      client: this.#options.client,
      resource: services,
      scope: {},
      logger: this.#options.logger,
      replaced: (found) => {
        this.#services.clear();
        for (const service of found) this.#services.set(key(service), slim(service));
        this.#markServicesSynced();
      },
      changed: (type, service) => {
        if (type === "DELETED") this.#services.delete(key(service));
        else this.#services.set(key(service), slim(service));
      },
    });
    return {
      [Symbol.asyncDispose]: async () => {
        const watched = [...this.#watched.values()];
        this.#watched.clear();
        await Promise.all([watch[Symbol.asyncDispose](), ...watched.map((entry) => entry.stop())]);
      },
    };
  }

  async secret(namespace: string, name: string): Promise<Secret | undefined> {
    return this.#read("Secret", secrets, namespace, name);
  }

  async configMap(namespace: string, name: string): Promise<ConfigMap | undefined> {
    return this.#read("ConfigMap", configMaps, namespace, name);
  }

  async serviceAccount(namespace: string, name: string): Promise<ServiceAccount | undefined> {
    return ifExists(this.#options.client.get(serviceAccounts, { namespace, name }));
  }

  async services(): Promise<readonly Service[]> {
    await this.#servicesSynced;
    return [...this.#services.values()];
  }

  async token(pod: Pod, audience: string | undefined, expirationSeconds: number): Promise<{ readonly token: string; readonly expiresAt: Date }> {
    const { namespace = "default", name = "", uid = "" } = pod.metadata ?? {};
    const request = {
      spec: { audiences: audience === undefined ? [] : [audience], expirationSeconds, boundObjectRef: { apiVersion: "v1", kind: "Pod", name, uid } },
    };
    const scope = { namespace, name: pod.spec?.serviceAccountName ?? "default", subresource: "token" };
    const { status } = await this.#options.client.create(tokenRequests, scope, request);
    return { token: status?.token ?? "", expiresAt: new Date(status?.expirationTimestamp ?? 0) };
  }

  use(podUid: string, objects: readonly { readonly kind: Kind; readonly namespace: string; readonly name: string }[]): void {
    const wanted = new Map(objects.map((object) => [keyOf(object.kind, object.namespace, object.name), object]));
    for (const [key, { kind, namespace, name }] of wanted) {
      const entry = this.#watched.get(key) ?? this.#watch(key, kind, namespace, name);
      entry.users.add(podUid);
    }
    for (const [key, entry] of this.#watched) {
      if (wanted.has(key) || !entry.users.delete(podUid) || entry.users.size > 0) continue;
      this.#watched.delete(key);
      void entry.stop();
    }
  }

  subscribe(onChange: (podUids: readonly string[]) => void): () => void {
    this.#listeners.add(onChange);
    return () => this.#listeners.delete(onChange);
  }

  async #read<T extends Secret | ConfigMap>(kind: Kind, resource: Resource<T>, namespace: string, name: string): Promise<T | undefined> {
    const entry = this.#watched.get(keyOf(kind, namespace, name));
    // The key says which kind the entry holds.
    if (entry !== undefined && (entry.isKnown || ((await entry.first) && entry.isKnown))) return entry.object as T | undefined;
    const object = await ifExists(this.#options.client.get(resource, { namespace, name }));
    return object === undefined ? undefined : withoutManagedFields(object);
  }

  #watch(key: string, kind: Kind, namespace: string, name: string): Watched {
    const { promise: first, resolve } = Promise.withResolvers<boolean>();
    const set = (object: Secret | ConfigMap | undefined): void => {
      const former = entry.object;
      const wasKnown = entry.isKnown;
      entry.object = object;
      entry.isKnown = true;
      resolve(true);
      if (wasKnown && former?.metadata?.resourceVersion !== object?.metadata?.resourceVersion) for (const listener of this.#listeners) listener([...entry.users]);
      // It cannot change any more; only its deletion would be missed, and Pods that run keep what they have.
      if (object?.immutable === true) void entry.stop();
    };
    const loop = startWatchLoop<Secret | ConfigMap>({
      client: this.#options.client,
      resource: kinds[kind],
      scope: { namespace },
      fieldSelector: `metadata.name=${name}`,
      logger: this.#options.logger,
      replaced: (found) => set(found[0]),
      changed: (type, object) => set(type === "DELETED" ? undefined : object),
      failed: () => resolve(false),
    });
    const stop = async (): Promise<void> => {
      resolve(false);
      await loop[Symbol.asyncDispose]();
    };
    const entry: Watched = { users: new Set(), first, stop, isKnown: false, object: undefined };
    this.#watched.set(key, entry);
    return entry;
  }
}

function keyOf(kind: Kind, namespace: string, name: string): string {
  return `${kind} ${namespace}/${name}`;
}

/** Only what the environment variables need: a cluster may have thousands of Services. */
function slim(service: Service): Service {
  const { namespace, name, uid, resourceVersion } = service.metadata ?? {};
  const { clusterIP, clusterIPs, ports, type } = service.spec ?? {};
  return {
    metadata: { ...(namespace !== undefined && { namespace }), ...(name !== undefined && { name }), ...(uid !== undefined && { uid }), ...(resourceVersion !== undefined && { resourceVersion }) },
    spec: { ...(clusterIP !== undefined && { clusterIP }), ...(clusterIPs !== undefined && { clusterIPs }), ...(ports !== undefined && { ports }), ...(type !== undefined && { type }) },
  };
}

async function ifExists<T>(request: Promise<T>): Promise<T | undefined> {
  try {
    return await request;
  } catch (error) {
    if (hasCode(error, "NotFound")) return undefined;
    throw error;
  }
}
