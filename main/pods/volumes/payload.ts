/**
 * The files of ConfigMap, Secret, downward API and projected volumes, from the objects they show. No file system here.
 * https://kubernetes.io/docs/concepts/storage/projected-volumes/
 */
import { PodyardError } from "../../contract/errors.ts";
import type { ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection } from "../../contract/kubernetes-api.generated.ts";
import type { NodeView, PodObjects } from "../../kubernetes/cluster.ts";
import { metadataField, resourceField } from "../downward-api.ts";
import type { Payload, ProjectedFile } from "./atomic-writer.ts";
import { commonUser } from "./ownership.ts";
import type { TokenCache } from "./token-cache.ts";

export interface PayloadSources {
  readonly objects: Pick<PodObjects, "secret" | "configMap">;
  readonly node: Pick<NodeView, "allocatable">;
  readonly tokens: TokenCache;
}

interface ObjectProjection {
  readonly kind: "ConfigMap" | "Secret";
  readonly name: string;
  readonly items: readonly KeyToPath[];
  readonly optional: boolean;
}

const defaultMode = 0o644;
const defaultTokenSeconds = 3600;

/** Undefined for volumes that have no such files. Errors: NotFound (with the kubelet's sentence), InvalidArgument, and those of the objects. */
export async function payloadOf(pod: Pod, volume: Volume, sources: PayloadSources): Promise<Payload | undefined> {
  const { configMap, secret, downwardAPI, projected } = volume;
  if (configMap !== undefined)
    return await objectPayload(
      pod,
      { kind: "ConfigMap", name: configMap.name ?? "", items: configMap.items ?? [], optional: configMap.optional ?? false },
      configMap.defaultMode ?? defaultMode,
      sources,
    );
  if (secret !== undefined)
    return await objectPayload(
      pod,
      { kind: "Secret", name: secret.secretName ?? "", items: secret.items ?? [], optional: secret.optional ?? false },
      secret.defaultMode ?? defaultMode,
      sources,
    );
  if (downwardAPI !== undefined) return downwardPayload(pod, downwardAPI.items ?? [], downwardAPI.defaultMode ?? defaultMode, sources);
  if (projected === undefined) return undefined;
  const payload = new Map<string, ProjectedFile>();
  const problems: PodyardError[] = [];
  for (const source of projected.sources ?? []) {
    try {
      for (const [path, file] of await projection(pod, volume.name, source, projected.defaultMode ?? defaultMode, sources)) payload.set(path, file);
    } catch (error) {
      if (!(error instanceof PodyardError)) throw error;
      problems.push(error);
    }
  }
  if (problems[0] !== undefined)
    throw problems.length === 1 ? problems[0] : new PodyardError(problems[0].code, `[${problems.map(({ message }) => message).join(", ")}]`);
  return payload;
}

async function projection(pod: Pod, volumeName: string, source: VolumeProjection, mode: number, sources: PayloadSources): Promise<Payload> {
  const { configMap, secret, downwardAPI, serviceAccountToken } = source;
  if (configMap !== undefined)
    return await objectPayload(
      pod,
      { kind: "ConfigMap", name: configMap.name ?? "", items: configMap.items ?? [], optional: configMap.optional ?? false },
      mode,
      sources,
    );
  if (secret !== undefined)
    return await objectPayload(pod, { kind: "Secret", name: secret.name ?? "", items: secret.items ?? [], optional: secret.optional ?? false }, mode, sources);
  if (downwardAPI !== undefined) return downwardPayload(pod, downwardAPI.items ?? [], mode, sources);
  if (serviceAccountToken === undefined)
    throw new PodyardError("Unsupported", `spec.volumes: this source of the projected volume "${volumeName}" is not supported`);
  const { audience, expirationSeconds, path } = serviceAccountToken;
  const token = await sources.tokens.token(pod, {
    volumeName,
    path,
    audience: audience === "" ? undefined : audience,
    expirationSeconds: expirationSeconds ?? defaultTokenSeconds,
  });
  // A token is for its reader alone: one user if all containers share it, else the group that applyFileSystemGroup lets in.
  // Where we may not change owners, a private file would be closed to its reader: the directories above keep others of this host out.
  const mayChangeOwner = process.getuid?.() === 0;
  const userId = mayChangeOwner ? commonUser(pod) : undefined;
  const isPrivate = mayChangeOwner && (userId !== undefined || pod.spec?.securityContext?.fsGroup !== undefined);
  return new Map([[path, { content: Buffer.from(token), mode: isPrivate ? 0o600 : mode, ...(userId !== undefined && { userId }) }]]);
}

async function objectPayload(pod: Pod, { kind, name, items, optional }: ObjectProjection, mode: number, { objects }: PayloadSources): Promise<Payload> {
  const namespace = pod.metadata?.namespace ?? "";
  const data = kind === "Secret" ? secretBytes(await objects.secret(namespace, name)) : configMapBytes(await objects.configMap(namespace, name));
  if (data === undefined && !optional) throw new PodyardError("NotFound", `${kind.toLowerCase()} "${name}" not found`);
  if (items.length === 0) return new Map([...(data ?? [])].map(([key, content]) => [key, { content, mode }]));
  const payload = new Map<string, ProjectedFile>();
  for (const item of items) {
    const content = data?.get(item.key);
    if (content !== undefined) payload.set(item.path, { content, mode: item.mode ?? mode });
    else if (!optional)
      throw new PodyardError(
        "NotFound",
        kind === "Secret" ? `references non-existent secret key: ${item.key}` : `configmap references non-existent config key: ${item.key}`,
      );
  }
  return payload;
}

function downwardPayload(pod: Pod, items: readonly DownwardAPIVolumeFile[], mode: number, { node }: PayloadSources): Payload {
  const payload = new Map<string, ProjectedFile>();
  for (const { path, mode: ownMode, fieldRef, resourceFieldRef } of items) {
    const text =
      fieldRef !== undefined
        ? metadataField(fieldRef.fieldPath, pod)
        : resourceFieldRef !== undefined
          ? resourceField(resourceFieldRef, pod, undefined, node.allocatable())
          : "";
    payload.set(path, { content: Buffer.from(text), mode: ownMode ?? mode });
  }
  return payload;
}

function secretBytes(secret: Secret | undefined): ReadonlyMap<string, Buffer> | undefined {
  return secret && new Map(Object.entries(secret.data ?? {}).map(([key, value]) => [key, Buffer.from(value, "base64")]));
}

function configMapBytes(configMap: ConfigMap | undefined): ReadonlyMap<string, Buffer> | undefined {
  const binary = Object.entries(configMap?.binaryData ?? {}).map(([key, value]): [string, Buffer] => [key, Buffer.from(value, "base64")]);
  return configMap && new Map([...binary, ...Object.entries(configMap.data ?? {}).map(([key, value]): [string, Buffer] => [key, Buffer.from(value)])]);
}
