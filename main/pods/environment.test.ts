import { describe, expect, test } from "vitest";
import { PodyardError } from "../contract/errors.ts";
import type { ConfigMap, Container, EnvVar, Pod, Secret, Service } from "../contract/kubernetes-api.generated.ts";
import { expand, expandCommand, resolveEnvironment, serviceVariables } from "./environment.ts";

const base64 = (text: string): string => Buffer.from(text).toString("base64");
const configMaps: Readonly<Record<string, ConfigMap>> = {
  settings: { data: { COLOR: "red", SIZE: "9", raw: "$(COLOR)" } },
  other: { data: { COLOR: "blue" } },
};
const secrets: Readonly<Record<string, Secret>> = { keys: { data: { TOKEN: base64("t0p"), COLOR: base64("black") } } };
const services: readonly Service[] = [
  { metadata: { name: "kubernetes", namespace: "default" }, spec: { clusterIP: "10.0.0.1", ports: [{ name: "https", port: 443, protocol: "TCP" }] } },
  { metadata: { name: "my-db", namespace: "ns" }, spec: { clusterIP: "10.0.0.9", ports: [{ port: 5432 }, { name: "adm-in", port: 53, protocol: "UDP" }] } },
  { metadata: { name: "headless", namespace: "ns" }, spec: { clusterIP: "None", ports: [{ port: 1 }] } },
  { metadata: { name: "elsewhere", namespace: "other" }, spec: { clusterIP: "10.0.0.7", ports: [{ port: 1 }] } },
];

const pod: Pod = {
  metadata: { name: "p", namespace: "ns", uid: "u-1", labels: { "app.io/x": "yes" }, annotations: { note: "hello" } },
  spec: {
    nodeName: "n1",
    serviceAccountName: "robot",
    enableServiceLinks: false,
    containers: [
      { name: "vm", resources: { limits: { cpu: "1500m" }, requests: { memory: "100Mi" } } },
      { name: "c", resources: { limits: { memory: "1Gi" } } },
    ],
  },
};

async function resolve(container: Partial<Container>, of: Pod = pod): Promise<Record<string, string>> {
  const result = await attempt(container, of);
  if (result.kind !== "resolved") throw new Error(result.message);
  return Object.fromEntries(result.variables.filter(({ name }) => !name.startsWith("KUBERNETES_")).map(({ name, value }) => [name, value]));
}

function attempt(container: Partial<Container>, of: Pod = pod) {
  return resolveEnvironment(
    of,
    { ...pod.spec?.containers[0], name: "vm", ...container },
    {
      objects: { configMap: async (_, name) => configMaps[name], secret: async (_, name) => secrets[name], services: async () => services },
      node: { addresses: () => ["192.168.1.2", "fd00::2"], allocatable: () => ({ cpu: 7500, memory: 16 * 1024 ** 3 }) },
      podIPs: ["10.1.0.5", "fd00::5"],
    },
  );
}

test.each([
  ["$(A)", "1"],
  ["x$(A)y$(B)z", "x1y2z"],
  ["$$(A)", "$(A)"],
  ["$$$(A)", "$1"],
  ["$(MISSING)", "$(MISSING)"],
  ["$(A", "$(A"],
  ["$A ${A} $", "$A ${A} $"],
  ["$$$$", "$$"],
  ["$()", "$()"],
  ["$(A)$(A)", "11"],
])("%s expands to %s", (text, expected) => {
  expect(expand(text, (name) => ({ A: "1", B: "2" })[name])).toBe(expected);
});

test("command and args are expanded, and absent ones stay the image's", () => {
  expect(expandCommand({ command: ["sh", "$(X)"], args: [] }, [{ name: "X", value: "v" }])).toEqual({ command: ["sh", "v"], args: undefined });
});

describe("the environment", () => {
  test("lets later envFrom win over earlier, and env over both, in the order declared", async () => {
    const variables = await resolve({
      envFrom: [{ configMapRef: { name: "settings" } }, { prefix: "S_", secretRef: { name: "keys" } }, { configMapRef: { name: "other" } }],
      env: [
        { name: "SIZE", value: "10" },
        { name: "BOTH", value: "$(COLOR)-$(SIZE)-$(LATER)" },
        { name: "LATER", value: "x" },
      ],
    });
    expect(variables).toEqual({ COLOR: "blue", SIZE: "10", raw: "$(COLOR)", S_TOKEN: "t0p", S_COLOR: "black", BOTH: "blue-10-$(LATER)", LATER: "x" });
  });

  test.each<[string, EnvVar["valueFrom"], string]>([
    ["name", { fieldRef: { fieldPath: "metadata.name" } }, "p"],
    ["namespace", { fieldRef: { fieldPath: "metadata.namespace" } }, "ns"],
    ["uid", { fieldRef: { fieldPath: "metadata.uid", apiVersion: "v1" } }, "u-1"],
    ["label", { fieldRef: { fieldPath: "metadata.labels['app.io/x']" } }, "yes"],
    ["annotation", { fieldRef: { fieldPath: "metadata.annotations['note']" } }, "hello"],
    ["missing label", { fieldRef: { fieldPath: "metadata.labels['none']" } }, ""],
    ["node", { fieldRef: { fieldPath: "spec.nodeName" } }, "n1"],
    ["service account", { fieldRef: { fieldPath: "spec.serviceAccountName" } }, "robot"],
    ["host IP", { fieldRef: { fieldPath: "status.hostIP" } }, "192.168.1.2"],
    ["host IPs", { fieldRef: { fieldPath: "status.hostIPs" } }, "192.168.1.2,fd00::2"],
    ["Pod IP", { fieldRef: { fieldPath: "status.podIP" } }, "10.1.0.5"],
    ["Pod IPs", { fieldRef: { fieldPath: "status.podIPs" } }, "10.1.0.5,fd00::5"],
    ["CPU limit rounded up", { resourceFieldRef: { resource: "limits.cpu" } }, "2"],
    ["CPU limit in millicores", { resourceFieldRef: { resource: "limits.cpu", divisor: "1m" } }, "1500"],
    ["memory limit of the node", { resourceFieldRef: { resource: "limits.memory", divisor: "1Gi" } }, "16"],
    ["memory request", { resourceFieldRef: { resource: "requests.memory", divisor: "1Mi" } }, "100"],
    ["request not set", { resourceFieldRef: { resource: "requests.cpu", divisor: "0" } }, "0"],
    ["another container's limit", { resourceFieldRef: { containerName: "c", resource: "limits.memory", divisor: "1Mi" } }, "1024"],
    ["secret key", { secretKeyRef: { name: "keys", key: "TOKEN" } }, "t0p"],
    ["ConfigMap key, not expanded", { configMapKeyRef: { name: "settings", key: "raw" } }, "$(COLOR)"],
  ])("%s", async (_, valueFrom, expected) => {
    expect(await resolve({ env: [{ name: "X", ...(valueFrom && { valueFrom }) }] })).toEqual({ X: expected });
  });

  test("takes the Pod's own limit before the node's", async () => {
    const of: Pod = { ...pod, spec: { containers: [], ...pod.spec, resources: { limits: { memory: "2Gi" } } } };
    expect(await resolve({ env: [{ name: "X", valueFrom: { resourceFieldRef: { resource: "limits.memory", divisor: "1Mi" } } }] }, of)).toEqual({ X: "2048" });
  });

  test("leaves out what is optional and missing, with an event each", async () => {
    const result = await attempt({
      envFrom: [{ secretRef: { name: "none", optional: true } }],
      env: [
        { name: "A", valueFrom: { configMapKeyRef: { name: "none", key: "k", optional: true } } },
        { name: "B", valueFrom: { secretKeyRef: { name: "keys", key: "none", optional: true } } },
      ],
    });
    expect(result.kind === "resolved" && result.variables.some(({ name }) => name === "A" || name === "B")).toBe(false);
    expect(result.events.map(({ type, reason, message }) => [type, reason, message])).toEqual([
      ["Warning", "OptionalSecretNotFound", 'secret "none" not found'],
      ["Warning", "OptionalConfigMapNotFound", 'configmap "none" not found'],
      ["Warning", "OptionalSecretKeyNotFound", "couldn't find key none in Secret ns/keys"],
    ]);
  });

  test.each<[Partial<Container>, string, string | undefined]>([
    [{ envFrom: [{ secretRef: { name: "none" } }] }, 'secret "none" not found', "MandatorySecretNotFound"],
    [{ envFrom: [{ configMapRef: { name: "none" } }] }, 'configmap "none" not found', "MandatoryConfigMapNotFound"],
    [{ env: [{ name: "A", valueFrom: { secretKeyRef: { name: "none", key: "k" } } }] }, 'secret "none" not found', "MandatorySecretNotFound"],
    [
      { env: [{ name: "A", valueFrom: { configMapKeyRef: { name: "settings", key: "k" } } }] },
      "couldn't find key k in ConfigMap ns/settings",
      "MandatoryConfigMapKeyNotFound",
    ],
    [{ env: [{ name: "A", valueFrom: { fieldRef: { fieldPath: "spec.containers" } } }] }, "unsupported fieldPath: spec.containers", undefined],
    [{ env: [{ name: "A", valueFrom: { resourceFieldRef: { containerName: "x", resource: "limits.cpu" } } }] }, "container x not found", undefined],
  ])("waits for %j", async (container, message, reason) => {
    expect(await attempt(container)).toMatchObject({ kind: "unresolved", message, events: reason === undefined ? [] : [{ type: "Warning", reason, message }] });
  });

  test("passes on that the API server is away", async () => {
    const away = resolveEnvironment(
      pod,
      { name: "vm", envFrom: [{ secretRef: { name: "x" } }] },
      {
        objects: { configMap: async () => undefined, services: async () => [], secret: () => Promise.reject(new PodyardError("Unavailable", "away")) },
        node: { addresses: () => [], allocatable: () => ({}) },
        podIPs: [],
      },
    );
    await expect(away).rejects.toThrow("away");
  });
});

describe("Service variables", () => {
  test("are those of the Pod's namespace, and of kubernetes in any case", () => {
    expect(Object.fromEntries(serviceVariables(services, "ns", true))).toEqual({
      KUBERNETES_SERVICE_HOST: "10.0.0.1",
      KUBERNETES_SERVICE_PORT: "443",
      KUBERNETES_SERVICE_PORT_HTTPS: "443",
      KUBERNETES_PORT: "tcp://10.0.0.1:443",
      KUBERNETES_PORT_443_TCP: "tcp://10.0.0.1:443",
      KUBERNETES_PORT_443_TCP_PROTO: "tcp",
      KUBERNETES_PORT_443_TCP_PORT: "443",
      KUBERNETES_PORT_443_TCP_ADDR: "10.0.0.1",
      MY_DB_SERVICE_HOST: "10.0.0.9",
      MY_DB_SERVICE_PORT: "5432",
      MY_DB_SERVICE_PORT_ADM_IN: "53",
      MY_DB_PORT: "tcp://10.0.0.9:5432",
      MY_DB_PORT_5432_TCP: "tcp://10.0.0.9:5432",
      MY_DB_PORT_5432_TCP_PROTO: "tcp",
      MY_DB_PORT_5432_TCP_PORT: "5432",
      MY_DB_PORT_5432_TCP_ADDR: "10.0.0.9",
      MY_DB_PORT_53_UDP: "udp://10.0.0.9:53",
      MY_DB_PORT_53_UDP_PROTO: "udp",
      MY_DB_PORT_53_UDP_PORT: "53",
      MY_DB_PORT_53_UDP_ADDR: "10.0.0.9",
    });
  });

  test("are only those of kubernetes without service links", () => {
    expect([...serviceVariables(services, "ns", false).keys()].every((name) => name.startsWith("KUBERNETES_"))).toBe(true);
  });

  test("are below the container's own variables but may be referred to", async () => {
    expect(await resolve({ env: [{ name: "URL", value: "https://$(KUBERNETES_SERVICE_HOST)" }] })).toEqual({ URL: "https://10.0.0.1" });
    const result = await attempt({ env: [{ name: "KUBERNETES_SERVICE_HOST", value: "mine" }] });
    expect(result.kind === "resolved" && result.variables.filter(({ name }) => name === "KUBERNETES_SERVICE_HOST")).toEqual([
      { name: "KUBERNETES_SERVICE_HOST", value: "mine" },
    ]);
  });
});
