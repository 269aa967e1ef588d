/** The objects Pods refer to when there is no cluster: Secrets and ConfigMaps from manifests, no Services, no tokens. */
import { PodyardError } from "../contract/errors.ts";
import type { ConfigMap, Secret } from "../contract/kubernetes-api.generated.ts";
import type { PodObjects } from "../kubernetes/cluster.ts";

export class StandaloneObjects implements PodObjects {
  #secrets: ReadonlyMap<string, Secret> = new Map();
  #configMaps: ReadonlyMap<string, ConfigMap> = new Map();
  readonly #users = new Map<string, ReadonlySet<string>>();
  readonly #listeners = new Set<(podUids: readonly string[]) => void>();

  /** Replaces all objects and tells the Pods that use one that changed. */
  replace(secrets: ReadonlyMap<string, Secret>, configMaps: ReadonlyMap<string, ConfigMap>): void {
    const changed = new Set([...differences("Secret", this.#secrets, secrets), ...differences("ConfigMap", this.#configMaps, configMaps)]);
    this.#secrets = secrets;
    this.#configMaps = configMaps;
    const uids = [...this.#users].filter(([, used]) => [...used].some((key) => changed.has(key))).map(([uid]) => uid);
    if (uids.length > 0) for (const listener of this.#listeners) listener(uids);
  }

  async secret(namespace: string, name: string): Promise<Secret | undefined> {
    return this.#secrets.get(`${namespace}/${name}`);
  }

  async configMap(namespace: string, name: string): Promise<ConfigMap | undefined> {
    return this.#configMaps.get(`${namespace}/${name}`);
  }

  async serviceAccount(namespace: string, name: string) {
    // Every namespace has its default one, with nothing in it.
    return name === "default" ? { metadata: { name, namespace } } : undefined;
  }

  async services() {
    return [];
  }

  async token(): Promise<never> {
    throw new PodyardError("Unsupported", "A host without a cluster has nobody to issue service account tokens.", { fix: "Remove the serviceAccountToken projection, or join a cluster." });
  }

  use(podUid: string, objects: readonly { readonly kind: "Secret" | "ConfigMap"; readonly namespace: string; readonly name: string }[]): void {
    if (objects.length === 0) this.#users.delete(podUid);
    else this.#users.set(podUid, new Set(objects.map(({ kind, namespace, name }) => `${kind}/${namespace}/${name}`)));
  }

  subscribe(onChange: (podUids: readonly string[]) => void): () => void {
    this.#listeners.add(onChange);
    return () => this.#listeners.delete(onChange);
  }
}

function differences(kind: string, before: ReadonlyMap<string, unknown>, after: ReadonlyMap<string, unknown>): readonly string[] {
  const keys = new Set([...before.keys(), ...after.keys()]);
  return [...keys].filter((key) => JSON.stringify(before.get(key)) !== JSON.stringify(after.get(key))).map((key) => `${kind}/${key}`);
}
