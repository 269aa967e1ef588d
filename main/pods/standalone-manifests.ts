/**
 * Manifests of a host without a cluster: YAML or JSON, several documents per file, Pods with the Secrets and ConfigMaps
 * they use. Checks what the API server would check first and fills in what it would fill in, so that the sync loop sees
 * the same Pods either way. Errors name the file, the path in the document and the value. Pure.
 */
import { createHash } from "node:crypto";
import { LineCounter, parseAllDocuments } from "yaml";
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";
import type { ConfigMap, Container, Pod, Probe, Secret, Volume } from "../contract/kubernetes-api.generated.ts";

export type StandaloneObject = { readonly kind: "Pod"; readonly object: Pod } | { readonly kind: "Secret"; readonly object: Secret } | { readonly kind: "ConfigMap"; readonly object: ConfigMap };

const label = z.string().regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/, "expected lower-case letters, digits and - (RFC 1123 label)").max(63);
const subdomain = z.string().regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/, "expected lower-case letters, digits, - and . (RFC 1123 subdomain)").max(253);
const strings = z.record(z.string(), z.string());
const metadata = z.looseObject({ name: subdomain, namespace: label.optional(), labels: strings.optional(), annotations: strings.optional(), uid: z.string().optional() });
const port = z.number().int().min(1).max(65535);
const policies = ["Always", "IfNotPresent", "Never"] as const;
const action = { exec: z.looseObject({ command: z.array(z.string()).min(1) }).optional(), httpGet: z.looseObject({ port: z.union([port, z.string()]), path: z.string().optional() }).optional(), tcpSocket: z.looseObject({ port: z.union([port, z.string()]) }).optional() };
const seconds = z.number().int().min(0);
const probe = z.looseObject({ ...action, grpc: z.looseObject({ port }).optional(), initialDelaySeconds: seconds.optional(), periodSeconds: seconds.optional(), timeoutSeconds: seconds.optional(), successThreshold: seconds.optional(), failureThreshold: seconds.optional() });
const hook = z.looseObject({ ...action, sleep: z.looseObject({ seconds }).optional() });
const quantities = z.record(z.string(), z.union([z.string(), z.number()]));
const environmentVariable = z.looseObject({ name: z.string().min(1), value: z.string({ error: "expected a string (quote numbers and true/false)" }).optional() });
const container = z.looseObject({
  name: label,
  image: z.string().min(1),
  imagePullPolicy: z.enum(policies).optional(),
  command: z.array(z.string()).optional(),
  args: z.array(z.string()).optional(),
  workingDir: z.string().optional(),
  env: z.array(environmentVariable).optional(),
  ports: z.array(z.looseObject({ containerPort: port, hostPort: port.optional(), protocol: z.enum(["TCP", "UDP", "SCTP"]).optional() })).optional(),
  resources: z.looseObject({ limits: quantities.optional(), requests: quantities.optional() }).optional(),
  volumeMounts: z.array(z.looseObject({ name: z.string().min(1), mountPath: z.string().min(1), readOnly: z.boolean().optional() })).optional(),
  livenessProbe: probe.optional(),
  readinessProbe: probe.optional(),
  startupProbe: probe.optional(),
  lifecycle: z.looseObject({ postStart: hook.optional(), preStop: hook.optional() }).optional(),
  restartPolicy: z.string().optional(),
  tty: z.boolean().optional(),
  stdin: z.boolean().optional(),
  stdinOnce: z.boolean().optional(),
});
const podSchema = z
  .looseObject({
    apiVersion: z.literal("v1"),
    kind: z.literal("Pod"),
    metadata,
    spec: z.looseObject({
      containers: z.array(container).min(1, "expected at least one container: the first is the virtual machine"),
      initContainers: z.array(container).optional(),
      restartPolicy: z.enum(["Always", "OnFailure", "Never"]).optional(),
      terminationGracePeriodSeconds: seconds.optional(),
      activeDeadlineSeconds: z.number().int().min(1).optional(),
      dnsPolicy: z.enum(["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]).optional(),
      volumes: z.array(z.looseObject({ name: label })).optional(),
    }),
  })
  .superRefine((pod, context) => {
    const volumes = new Set(pod.spec.volumes?.map(({ name }) => name));
    const seen = new Set<string>();
    for (const list of ["initContainers", "containers"] as const) {
      for (const [index, { name, volumeMounts }] of (pod.spec[list] ?? []).entries()) {
        if (seen.has(name)) context.addIssue({ code: "custom", path: ["spec", list, index, "name"], message: "another container has this name", input: name });
        seen.add(name);
        for (const [mountIndex, mount] of (volumeMounts ?? []).entries()) {
          if (!volumes.has(mount.name)) context.addIssue({ code: "custom", path: ["spec", list, index, "volumeMounts", mountIndex, "name"], message: "no volume of spec.volumes has this name", input: mount.name });
        }
      }
    }
  });
const secretSchema = z.looseObject({ apiVersion: z.literal("v1"), kind: z.literal("Secret"), metadata, type: z.string().optional(), data: z.record(z.string(), z.base64("expected base64; use stringData for plain text")).optional(), stringData: strings.optional() });
const configMapSchema = z.looseObject({ apiVersion: z.literal("v1"), kind: z.literal("ConfigMap"), metadata, data: strings.optional(), binaryData: z.record(z.string(), z.base64()).optional() });

/** All objects of a file, checked and completed. Errors: InvalidArgument, naming `source`, document, path, value and what is allowed. */
export function parseManifests(text: string, source: string): readonly StandaloneObject[] {
  const lines = new LineCounter();
  const objects: StandaloneObject[] = [];
  const documents = parseAllDocuments(text, { lineCounter: lines });
  if (!Array.isArray(documents)) return [];
  for (const document of documents) {
    const [error] = document.errors;
    const line = lines.linePos(error?.pos[0] ?? document.contents?.range?.[0] ?? 0).line;
    if (error !== undefined) throw new PodyardError("InvalidArgument", `${source}:${line}: ${error.message.split("\n")[0]}`);
    let value: unknown;
    try {
      value = document.toJS({ maxAliasCount: 100 });
    } catch (cause) {
      throw new PodyardError("InvalidArgument", `${source}:${line}: the document cannot be read`, { cause });
    }
    if (value === null || value === undefined) continue;
    for (const item of itemsOf(value)) objects.push(checked(item, `${source}:${line}`));
  }
  return objects;
}

function itemsOf(value: unknown): readonly unknown[] {
  const list = z.looseObject({ kind: z.literal("List"), items: z.array(z.unknown()) }).safeParse(value);
  return list.success ? list.data.items : [value];
}

function checked(value: unknown, place: string): StandaloneObject {
  const kind = z.looseObject({ kind: z.string() }).safeParse(value);
  switch (kind.success ? kind.data.kind : undefined) {
    case "Pod":
      return { kind: "Pod", object: withDefaults(validated(podSchema, value, place) as Pod) };
    case "Secret": {
      const secret = validated(secretSchema, value, place) as Secret;
      // As the API server does: stringData is only a way to write data.
      const { stringData, ...rest } = secret;
      const written = Object.fromEntries(Object.entries(stringData ?? {}).map(([key, text]) => [key, Buffer.from(text).toString("base64")]));
      return { kind: "Secret", object: { ...rest, metadata: inNamespace(secret.metadata), type: secret.type ?? "Opaque", data: { ...secret.data, ...written } } };
    }
    case "ConfigMap": {
      const configMap = validated(configMapSchema, value, place) as ConfigMap;
      return { kind: "ConfigMap", object: { ...configMap, metadata: inNamespace(configMap.metadata) } };
    }
    default:
      throw new PodyardError("InvalidArgument", `${place}: kind: ${kind.success ? JSON.stringify(kind.data.kind) : "missing"}: expected Pod, Secret or ConfigMap`);
  }
}

function validated(schema: z.ZodType, value: unknown, place: string): unknown {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const sentences = result.error.issues.slice(0, 5).map((issue) => {
    const path = issue.path.map((part, index) => (typeof part === "number" ? `[${part}]` : `${index === 0 ? "" : "."}${String(part)}`)).join("");
    const found = issue.path.reduce<unknown>((current, part) => (typeof current === "object" && current !== null ? (current as Readonly<Record<PropertyKey, unknown>>)[part] : undefined), value);
    // A Secret's values stay out of messages and logs.
    const isSecret = /^(data|stringData)\./.test(path) && z.looseObject({ kind: z.literal("Secret") }).safeParse(value).success;
    const shown = found === undefined || isSecret ? "" : ` ${JSON.stringify(found).slice(0, 80)}:`;
    return `${place}: ${path}:${shown} ${found === undefined && !isSecret ? "is required" : issue.message}`;
  });
  throw new PodyardError("InvalidArgument", sentences.join("; "));
}

function inNamespace(given: Pod["metadata"]): NonNullable<Pod["metadata"]> {
  return { ...given, namespace: given?.namespace ?? "default" };
}

/** Fills in what the API server would. */
export function withDefaults(pod: Pod): Pod {
  const spec = pod.spec ?? { containers: [] };
  const grace = spec.terminationGracePeriodSeconds ?? 30;
  return {
    ...pod,
    metadata: inNamespace(pod.metadata),
    spec: {
      ...spec,
      restartPolicy: spec.restartPolicy ?? "Always",
      dnsPolicy: spec.dnsPolicy ?? "ClusterFirst",
      terminationGracePeriodSeconds: grace,
      enableServiceLinks: spec.enableServiceLinks ?? true,
      schedulerName: spec.schedulerName ?? "default-scheduler",
      securityContext: spec.securityContext ?? {},
      containers: spec.containers.map(containerDefaults),
      ...(spec.initContainers === undefined ? {} : { initContainers: spec.initContainers.map(containerDefaults) }),
      ...(spec.volumes === undefined ? {} : { volumes: spec.volumes.map(volumeDefaults) }),
    },
  };
}

function containerDefaults(given: Container): Container {
  const { livenessProbe, readinessProbe, startupProbe, resources } = given;
  return {
    ...given,
    imagePullPolicy: given.imagePullPolicy ?? pullPolicyOf(given.image ?? ""),
    terminationMessagePath: given.terminationMessagePath ?? "/dev/termination-log",
    terminationMessagePolicy: given.terminationMessagePolicy ?? "File",
    resources: resources?.limits === undefined ? (resources ?? {}) : { ...resources, requests: { ...resources.limits, ...resources.requests } },
    ...(given.ports === undefined ? {} : { ports: given.ports.map((declared) => ({ ...declared, protocol: declared.protocol ?? "TCP" })) }),
    ...(livenessProbe === undefined ? {} : { livenessProbe: probeDefaults(livenessProbe) }),
    ...(readinessProbe === undefined ? {} : { readinessProbe: probeDefaults(readinessProbe) }),
    ...(startupProbe === undefined ? {} : { startupProbe: probeDefaults(startupProbe) }),
  };
}

/** No tag or `latest` means that the image may move. */
function pullPolicyOf(image: string): string {
  const [name = "", digest] = image.split("@");
  if (digest !== undefined) return "IfNotPresent";
  const tag = name.slice(name.lastIndexOf("/") + 1).split(":")[1];
  return tag === undefined || tag === "latest" ? "Always" : "IfNotPresent";
}

function probeDefaults(given: Probe): Probe {
  return { ...given, timeoutSeconds: given.timeoutSeconds || 1, periodSeconds: given.periodSeconds || 10, successThreshold: given.successThreshold || 1, failureThreshold: given.failureThreshold || 3 };
}

function volumeDefaults(volume: Volume): Volume {
  const mode = 0o644;
  if (volume.secret !== undefined) return { ...volume, secret: { ...volume.secret, defaultMode: volume.secret.defaultMode ?? mode } };
  if (volume.configMap !== undefined) return { ...volume, configMap: { ...volume.configMap, defaultMode: volume.configMap.defaultMode ?? mode } };
  if (volume.downwardAPI !== undefined) return { ...volume, downwardAPI: { ...volume.downwardAPI, defaultMode: volume.downwardAPI.defaultMode ?? mode } };
  if (volume.projected !== undefined) return { ...volume, projected: { ...volume.projected, defaultMode: volume.projected.defaultMode ?? mode } };
  if (volume.hostPath !== undefined) return { ...volume, hostPath: { ...volume.hostPath, type: volume.hostPath.type ?? "" } };
  return volume;
}

/**
 * A UID that follows from the content, as static Pods have it: the same manifest is the same Pod, a changed one another.
 * `host` keeps the Pods of two hosts on one machine apart: machines and interfaces are named by the UID.
 */
export function contentUid(host: string, pod: Pod): string {
  const { labels, annotations, name, namespace } = pod.metadata ?? {};
  const hash = createHash("sha256").update(JSON.stringify([host, namespace, name, sorted(labels), sorted(annotations), pod.spec])).digest("hex");
  return `${hash.slice(0, 8)}-${hash.slice(8, 12)}-8${hash.slice(13, 16)}-a${hash.slice(17, 20)}-${hash.slice(20, 32)}`;
}

function sorted(map: Readonly<Record<string, string>> | undefined): readonly (readonly [string, string])[] {
  return Object.entries(map ?? {}).sort(([one], [other]) => (one < other ? -1 : 1));
}
