/**
 * The environment of a container, and `$(VAR)` in commands and paths, by the kubelet's rules: envFrom first, env over it,
 * Service variables below both. Missing objects are reported twice: with the kubelet's waiting message, and with the event
 * reasons that virtual-kubelet has and its end-to-end suite demands.
 * https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
 */
import { isIPv6 } from "node:net";
import { messageOf } from "../contract/errors.ts";
import type { ConfigMap, Container, EnvVar, EnvVarSource, Pod, Secret, Service } from "../contract/kubernetes-api.generated.ts";
import type { NodeView, PodObjects } from "../kubernetes/cluster.ts";
import { environmentField, resourceField, type RuntimeFacts } from "./downward-api.ts";

export interface EnvironmentVariable {
  readonly name: string;
  readonly value: string;
}

export interface EnvironmentEvent {
  readonly type: "Normal" | "Warning";
  readonly reason: string;
  readonly message: string;
}

/** `unresolved`: the container waits with CreateContainerConfigError and this message, and is tried again. */
export type ResolvedEnvironment =
  | { readonly kind: "resolved"; readonly variables: readonly EnvironmentVariable[]; readonly events: readonly EnvironmentEvent[] }
  | { readonly kind: "unresolved"; readonly message: string; readonly events: readonly EnvironmentEvent[] };

export interface EnvironmentSources {
  readonly objects: Pick<PodObjects, "secret" | "configMap" | "services">;
  readonly node: Pick<NodeView, "addresses" | "allocatable">;
  /** Of the Pod's network; empty until known. */
  readonly podIPs: readonly string[];
}

/** Resolves env, envFrom and Service variables of a container. Errors: Unavailable, Forbidden (from the objects). */
export async function resolveEnvironment(
  pod: Pod,
  container: Pick<Container, "name" | "env" | "envFrom" | "resources">,
  sources: EnvironmentSources,
): Promise<ResolvedEnvironment> {
  const events: EnvironmentEvent[] = [];
  const services = serviceVariables(await sources.objects.services(), pod.metadata?.namespace ?? "", pod.spec?.enableServiceLinks ?? true);
  const variables = new Map<string, string>();
  const lookup = objectReader(pod.metadata?.namespace ?? "", sources.objects);
  const facts: RuntimeFacts = { hostIPs: sources.node.addresses(), podIPs: sources.podIPs };
  try {
    for (const { prefix = "", configMapRef, secretRef } of container.envFrom ?? []) {
      const reference = configMapRef ?? secretRef;
      if (reference === undefined) continue;
      const kind = configMapRef === undefined ? "Secret" : "ConfigMap";
      const data = await lookup(kind, reference.name ?? "");
      if (data === undefined) missing(events, kind, reference.name ?? "", undefined, reference.optional ?? false);
      else for (const [key, value] of data) variables.set(prefix + key, value);
    }
    for (const variable of container.env ?? []) {
      const value = await valueOf(
        variable,
        async (source) => {
          if (source.fieldRef !== undefined) return environmentField(source.fieldRef, pod, facts);
          if (source.resourceFieldRef !== undefined) return resourceField(source.resourceFieldRef, pod, container, sources.node.allocatable());
          const reference = source.configMapKeyRef ?? source.secretKeyRef;
          if (reference === undefined) return "";
          const kind = source.configMapKeyRef === undefined ? "Secret" : "ConfigMap";
          const data = await lookup(kind, reference.name ?? "");
          const found = data?.get(reference.key);
          if (found === undefined)
            missing(events, kind, reference.name ?? "", data === undefined ? undefined : reference.key, reference.optional ?? false, pod.metadata?.namespace);
          return found;
        },
        (name) => variables.get(name) ?? services.get(name),
      );
      if (value !== undefined) variables.set(variable.name, value);
    }
  } catch (error) {
    if (error instanceof MandatoryObjectMissing) return { kind: "unresolved", message: error.message, events: [...events, error.event] };
    // What a spec got wrong (an unknown field) waits; what a dependency got wrong is the caller's to retry.
    if (!(error instanceof Error) || !("code" in error) || error.code !== "InvalidArgument") throw error;
    return { kind: "unresolved", message: messageOf(error), events };
  }
  for (const [name, value] of services) if (!variables.has(name)) variables.set(name, value);
  return { kind: "resolved", variables: [...variables].map(([name, value]) => ({ name, value })), events };
}

/** Replaces `$(NAME)` by its value, `$$` by `$`; an unknown reference stays as it is written. */
export function expand(text: string, value: (name: string) => string | undefined): string {
  return text.replace(/\$(?:\$|\(([^)]*)\))/g, (whole, name: string | undefined) => (name === undefined ? "$" : (value(name) ?? whole)));
}

/** Command and args of a container with their references expanded; undefined where the image's are to be used. */
export function expandCommand(
  container: Pick<Container, "command" | "args">,
  variables: readonly EnvironmentVariable[],
): { readonly command: readonly string[] | undefined; readonly args: readonly string[] | undefined } {
  const values = new Map(variables.map(({ name, value }) => [name, value]));
  const all = (list: readonly string[] | undefined): readonly string[] | undefined =>
    list === undefined || list.length === 0 ? undefined : list.map((text) => expand(text, (name) => values.get(name)));
  return { command: all(container.command), args: all(container.args) };
}

/** The variables of the Services a Pod sees: those of its namespace if it wants links, and always `kubernetes` of `default`. */
export function serviceVariables(services: readonly Service[], namespace: string, enableServiceLinks: boolean): ReadonlyMap<string, string> {
  const chosen = new Map<string, Service>();
  for (const service of services) {
    const name = service.metadata?.name ?? "";
    const address = service.spec?.clusterIP;
    if (address === undefined || address === "" || address === "None") continue;
    if (service.metadata?.namespace === "default" && name === "kubernetes") {
      if (!chosen.has(name)) chosen.set(name, service);
    } else if (service.metadata?.namespace === namespace && enableServiceLinks) chosen.set(name, service);
  }
  const variables = new Map<string, string>();
  for (const name of [...chosen.keys()].sort()) {
    const { clusterIP = "", ports = [] } = chosen.get(name)?.spec ?? {};
    const prefix = variableName(name);
    const host = isIPv6(clusterIP) ? `[${clusterIP}]` : clusterIP;
    variables.set(`${prefix}_SERVICE_HOST`, clusterIP);
    if (ports[0] !== undefined) variables.set(`${prefix}_SERVICE_PORT`, String(ports[0].port));
    for (const port of ports)
      if (port.name !== undefined && port.name !== "") variables.set(`${prefix}_SERVICE_PORT_${variableName(port.name)}`, String(port.port));
    for (const [index, { port, protocol = "TCP" }] of ports.entries()) {
      const url = `${protocol.toLowerCase()}://${host}:${port}`;
      const portPrefix = `${prefix}_PORT_${port}_${protocol.toUpperCase()}`;
      if (index === 0) variables.set(`${prefix}_PORT`, url);
      variables
        .set(portPrefix, url)
        .set(`${portPrefix}_PROTO`, protocol.toLowerCase())
        .set(`${portPrefix}_PORT`, String(port))
        .set(`${portPrefix}_ADDR`, clusterIP);
    }
  }
  return variables;
}

class MandatoryObjectMissing extends Error {
  readonly event: EnvironmentEvent;

  constructor(message: string, reason: string) {
    super(message);
    this.event = { type: "Warning", reason, message };
  }
}

async function valueOf(
  variable: EnvVar,
  resolve: (source: EnvVarSource) => Promise<string | undefined>,
  known: (name: string) => string | undefined,
): Promise<string | undefined> {
  if (variable.value !== undefined && variable.value !== "") return expand(variable.value, known);
  return variable.valueFrom === undefined ? "" : await resolve(variable.valueFrom);
}

/** Records an optional object that is missing; throws for a mandatory one. */
function missing(events: EnvironmentEvent[], kind: "ConfigMap" | "Secret", name: string, key: string | undefined, optional: boolean, namespace = ""): void {
  const message = key === undefined ? `${kind.toLowerCase()} "${name}" not found` : `couldn't find key ${key} in ${kind} ${namespace}/${name}`;
  const what = key === undefined ? "" : "Key";
  if (!optional) throw new MandatoryObjectMissing(message, `Mandatory${kind}${what}NotFound`);
  events.push({ type: "Warning", reason: `Optional${kind}${what}NotFound`, message });
}

/** Reads each object once per resolution, as pairs of key and text. */
function objectReader(
  namespace: string,
  objects: EnvironmentSources["objects"],
): (kind: "ConfigMap" | "Secret", name: string) => Promise<ReadonlyMap<string, string> | undefined> {
  const known = new Map<string, ReadonlyMap<string, string> | undefined>();
  return async (kind, name) => {
    const id = `${kind}/${name}`;
    if (!known.has(id))
      known.set(id, kind === "Secret" ? secretText(await objects.secret(namespace, name)) : configMapText(await objects.configMap(namespace, name)));
    return known.get(id);
  };
}

function secretText(secret: Secret | undefined): ReadonlyMap<string, string> | undefined {
  return secret && new Map(Object.entries(secret.data ?? {}).map(([key, value]) => [key, Buffer.from(value, "base64").toString("utf8")]));
}

function configMapText(configMap: ConfigMap | undefined): ReadonlyMap<string, string> | undefined {
  return configMap && new Map(Object.entries(configMap.data ?? {}));
}

function variableName(name: string): string {
  return name.replaceAll("-", "_").toUpperCase();
}
