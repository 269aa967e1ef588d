import { describe, expect, test } from "vitest";
import type { Container, Pod, PodSpec } from "../contract/kubernetes-api.generated.ts";
import { admitPod, refusedEphemeralFields, type AdmissionContext } from "./admission.ts";

const gibibyte = 1024 ** 3;
const podOf = (spec: Partial<PodSpec> = {}, metadata: Pod["metadata"] = {}): Pod => ({
  metadata: { name: "p", namespace: "ns", uid: "u", ...metadata },
  spec: {
    containers: [
      { name: "vm", image: "vm" },
      { name: "side", image: "side" },
    ],
    ...spec,
  },
});
const vm = (container: Partial<Container>): Partial<PodSpec> => ({ containers: [{ name: "vm", image: "vm", ...container }] });
const side = (container: Partial<Container>): Partial<PodSpec> => ({
  containers: [
    { name: "vm", image: "vm" },
    { name: "side", image: "side", ...container },
  ],
});

function contextOf(
  changes: { accepting?: boolean; otherPods?: readonly Pod[]; operatingSystem?: "darwin" | "linux"; labels?: Record<string, string> } = {},
): AdmissionContext {
  return {
    node: {
      name: "node-1",
      labels: () => ({ "kubernetes.io/arch": "amd64", zone: "a", cores: "8", ...changes.labels }),
      allocatable: () => ({ cpu: 4000, memory: 8 * gibibyte, "ephemeral-storage": 100 * gibibyte, pods: 3, "podyard.dev/vm": 2 }),
      accepting: () => changes.accepting ?? true,
    },
    operatingSystem: changes.operatingSystem ?? "linux",
    otherPods: changes.otherPods ?? [],
  };
}

/** What a real API server (1.35) makes of a Pod with an image and nothing else. */
const defaulted: PodSpec = {
  automountServiceAccountToken: true,
  containers: [
    {
      name: "vm",
      image: "vm",
      imagePullPolicy: "Always",
      resources: {},
      terminationMessagePath: "/dev/termination-log",
      terminationMessagePolicy: "File",
      livenessProbe: { httpGet: { path: "/", port: 80, scheme: "HTTP" }, failureThreshold: 3, periodSeconds: 10, successThreshold: 1, timeoutSeconds: 1 },
      ports: [{ containerPort: 80, protocol: "TCP" }],
      securityContext: {},
      volumeMounts: [{ name: "kube-api-access-x", mountPath: "/var/run/secrets/kubernetes.io/serviceaccount", readOnly: true }],
    },
  ],
  dnsPolicy: "ClusterFirst",
  enableServiceLinks: true,
  nodeName: "node-1",
  preemptionPolicy: "PreemptLowerPriority",
  priority: 0,
  restartPolicy: "Always",
  schedulerName: "default-scheduler",
  securityContext: {},
  serviceAccount: "default",
  serviceAccountName: "default",
  terminationGracePeriodSeconds: 30,
  tolerations: [{ effect: "NoExecute", key: "node.kubernetes.io/not-ready", operator: "Exists", tolerationSeconds: 300 }],
  volumes: [
    {
      name: "kube-api-access-x",
      projected: {
        defaultMode: 420,
        sources: [
          { serviceAccountToken: { expirationSeconds: 3607, path: "token" } },
          { configMap: { items: [{ key: "ca.crt", path: "ca.crt" }], name: "kube-root-ca.crt" } },
          { downwardAPI: { items: [{ fieldRef: { apiVersion: "v1", fieldPath: "metadata.namespace" }, path: "namespace" }] } },
        ],
      },
    },
  ],
};

test("a Pod with everything that the API server defaults is admitted", () => {
  expect(admitPod({ metadata: { name: "p" }, spec: defaulted }, contextOf())).toEqual({ verdict: "admit" });
});

describe("is admitted with", () => {
  test.each<[string, Partial<PodSpec>]>([
    ["hostNetwork, hostPID, hostIPC false", { hostNetwork: false, hostPID: false, hostIPC: false, hostUsers: true }],
    ["empty objects and lists", { securityContext: { seLinuxOptions: {} }, overhead: {}, resourceClaims: [], volumes: [{ name: "e", emptyDir: {} }] }],
    ["RuntimeDefault seccomp for all", { securityContext: { seccompProfile: { type: "RuntimeDefault" } } }],
    ["a non-root user", { securityContext: { runAsNonRoot: true, runAsUser: 1000 } }],
    ["a user of the machine itself", vm({ securityContext: { runAsNonRoot: true, runAsUser: 501 } })],
    ["resources we know", vm({ resources: { limits: { cpu: "2", memory: "1Gi", "ephemeral-storage": "1Gi", "podyard.dev/vm": "1" } } })],
    [
      "a side-car that is hardened",
      side({
        securityContext: {
          allowPrivilegeEscalation: false,
          capabilities: { drop: ["ALL"], add: ["NET_ADMIN"] },
          readOnlyRootFilesystem: true,
          runAsNonRoot: true,
          procMount: "Default",
        },
      }),
    ],
    ["a privileged side-car", side({ securityContext: { privileged: true } })],
    ["safe sysctls", { securityContext: { sysctls: [{ name: "net.ipv4.tcp_syncookies", value: "1" }] } }],
    [
      "native side-cars",
      {
        initContainers: [
          { name: "i", image: "i" },
          { name: "s", image: "s", restartPolicy: "Always" },
        ],
      },
    ],
    ["an emptyDir in memory", { volumes: [{ name: "e", emptyDir: { medium: "Memory", sizeLimit: "1Mi" } }] }],
    [
      "a socket of the host for the side-car",
      { ...side({ volumeMounts: [{ name: "h", mountPath: "/s" }] }), volumes: [{ name: "h", hostPath: { path: "/s", type: "Socket" } }] },
    ],
    ["the Pod's own resources when alone", { ...vm({}), resources: { limits: { cpu: "1" } } }],
  ])("%s", (_, spec) => {
    expect(admitPod(podOf(spec), contextOf())).toEqual({ verdict: "admit" });
  });
});

describe("is refused with a message that names the field", () => {
  test.each<[string, Partial<PodSpec>]>([
    ["spec.hostNetwork: true", { hostNetwork: true }],
    ["spec.hostPID: true", { hostPID: true }],
    ["spec.hostIPC: true", { hostIPC: true }],
    ["spec.hostUsers: false", { hostUsers: false }],
    ["spec.runtimeClassName: gvisor", { runtimeClassName: "gvisor" }],
    ["spec.overhead[cpu]: 1", { overhead: { cpu: "1" } }],
    ["spec.resourceClaims[0].name: gpu", { resourceClaims: [{ name: "gpu", resourceClaimName: "x" }] }],
    ["spec.resources.limits[cpu]: 1", { resources: { limits: { cpu: "1" } } }],
    ["spec.securityContext.sysctls[0].name: kernel.msgmax", { securityContext: { sysctls: [{ name: "kernel.msgmax", value: "1" }] } }],
    ["spec.securityContext.seLinuxOptions.level: s0", { securityContext: { seLinuxOptions: { level: "s0" } } }],
    ["spec.securityContext.supplementalGroupsPolicy: Strict", { securityContext: { supplementalGroupsPolicy: "Strict" } }],
    ["spec.securityContext.runAsNonRoot: true", { securityContext: { runAsNonRoot: true } }],
    ["spec.securityContext.seccompProfile.type: Localhost", { securityContext: { seccompProfile: { type: "Localhost", localhostProfile: "p" } } }],
    [
      "spec.volumes[1].persistentVolumeClaim.claimName: c",
      {
        volumes: [
          { name: "e", emptyDir: {} },
          { name: "v", persistentVolumeClaim: { claimName: "c" } },
        ],
      },
    ],
    ["spec.volumes[0].csi.driver: d", { volumes: [{ name: "v", csi: { driver: "d" } }] }],
    ["spec.volumes[0].nfs.server: s", { volumes: [{ name: "v", nfs: { server: "s", path: "/" } }] }],
    ["spec.volumes[0].image.reference: r", { volumes: [{ name: "v", image: { reference: "r" } }] }],
    ["spec.volumes[0].emptyDir.medium: HugePages", { volumes: [{ name: "v", emptyDir: { medium: "HugePages" } }] }],
    [
      "spec.volumes[0].projected.sources[0].clusterTrustBundle.path: p",
      { volumes: [{ name: "v", projected: { sources: [{ clusterTrustBundle: { path: "p", name: "b" } }] } }] },
    ],
    [
      "spec.volumes[0].hostPath.type: Socket",
      { ...vm({ volumeMounts: [{ name: "h", mountPath: "/s" }] }), volumes: [{ name: "h", hostPath: { path: "/s", type: "Socket" } }] },
    ],
    ["spec.containers[0].securityContext.privileged: true", vm({ securityContext: { privileged: true } })],
    ["spec.containers[0].securityContext.capabilities.drop[0]: ALL", vm({ securityContext: { capabilities: { drop: ["ALL"] } } })],
    ["spec.containers[0].securityContext.allowPrivilegeEscalation: false", vm({ securityContext: { allowPrivilegeEscalation: false } })],
    ["spec.containers[0].securityContext.readOnlyRootFilesystem: true", vm({ securityContext: { readOnlyRootFilesystem: true } })],
    ["spec.containers[0].resources.limits[nvidia.com/gpu]: 1", vm({ resources: { limits: { "nvidia.com/gpu": "1" } } })],
    ["spec.containers[0].volumeDevices[0].name: d", vm({ volumeDevices: [{ name: "d", devicePath: "/dev/d" }] })],
    [
      "spec.containers[0].volumeMounts[0].mountPropagation: HostToContainer",
      vm({ volumeMounts: [{ name: "e", mountPath: "/e", mountPropagation: "HostToContainer" }] }),
    ],
    [
      "spec.containers[0].env[0].valueFrom.fileKeyRef.key: k",
      vm({ env: [{ name: "A", valueFrom: { fileKeyRef: { key: "k", path: "p", volumeName: "v" } } }] }),
    ],
    ["spec.containers[0].restartPolicyRules[0].action: RestartAllContainers", vm({ restartPolicyRules: [{ action: "RestartAllContainers" }] })],
    ["spec.containers[1].securityContext.procMount: Unmasked", side({ securityContext: { procMount: "Unmasked" } })],
    [
      "spec.containers[1].securityContext.seccompProfile.localhostProfile: p",
      side({ securityContext: { seccompProfile: { type: "Localhost", localhostProfile: "p" } } }),
    ],
    [
      "spec.containers[1].volumeMounts[0].recursiveReadOnly: Enabled",
      side({ volumeMounts: [{ name: "e", mountPath: "/e", readOnly: true, recursiveReadOnly: "Enabled" }] }),
    ],
    ["spec.initContainers[0].securityContext.procMount: Unmasked", { initContainers: [{ name: "i", securityContext: { procMount: "Unmasked" } }] }],
  ])("%s", (field, spec) => {
    const verdict = admitPod(podOf(spec), contextOf());
    expect(verdict.verdict).toBe("refuse");
    expect(
      verdict.verdict === "refuse" && verdict.fields.map(({ message }) => message).find((message) => message.startsWith(`${field} cannot be honoured: `)),
    ).toBeDefined();
    expect(verdict.verdict === "refuse" && verdict.message).toContain("cannot be honoured");
  });

  test("a field that this version does not know", () => {
    const newer = { quantumEntanglement: { peer: "p" } };
    const pod: Pod = { spec: { containers: [{ name: "vm" }], ...newer } };
    expect(admitPod(pod, contextOf())).toMatchObject({
      verdict: "refuse",
      message: "spec.quantumEntanglement.peer: p cannot be honoured: this version of Podyard does not know the field",
    });
  });

  test("memory volumes where the host cannot have them", () => {
    expect(admitPod(podOf({ volumes: [{ name: "e", emptyDir: { medium: "Memory" } }] }), contextOf({ operatingSystem: "darwin" }))).toMatchObject({
      verdict: "refuse",
    });
  });

  test("all fields at once, before anything is asked of the node", () => {
    const verdict = admitPod(podOf({ hostPID: true, hostIPC: true, nodeSelector: { zone: "elsewhere" } }), contextOf());
    expect(verdict.verdict === "refuse" && verdict.fields.map(({ path }) => path)).toEqual(["spec.hostPID", "spec.hostIPC"]);
  });

  test("an ephemeral container alone, by the rules of side-cars", () => {
    const debug = { name: "d", image: "busybox", targetContainerName: "vm", stdin: true, tty: true, securityContext: { procMount: "Unmasked" } };
    const pod = podOf({ ephemeralContainers: [debug] });
    expect(admitPod(pod, contextOf())).toEqual({ verdict: "admit" });
    expect(refusedEphemeralFields(pod, debug, "linux").map(({ path }) => path)).toEqual(["spec.ephemeralContainers[0].securityContext.procMount"]);
  });
});

describe("is rejected, as the kubelet does", () => {
  const other = (requests: Record<string, string>, status?: Pod["status"]): Pod => ({
    spec: { containers: [{ name: "c", resources: { requests } }] },
    ...(status && { status }),
  });
  const big = vm({ resources: { requests: { cpu: "3", memory: "6Gi" } } });

  test.each<[string, Partial<PodSpec>, Parameters<typeof contextOf>[0], string, string]>([
    ["the node is leaving", {}, { accepting: false }, "NodeShutdown", "Pod was rejected as the node is shutting down."],
    ["another operating system", { os: { name: "windows" } }, {}, "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"],
    ["nodeSelector", { nodeSelector: { zone: "b" } }, {}, "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"],
    ["CPU", big, { otherPods: [other({ cpu: "1500m" })] }, "OutOfcpu", "Node didn't have enough resource: cpu, requested: 3000, used: 1500, capacity: 4000"],
    [
      "memory",
      big,
      { otherPods: [other({ memory: "3Gi" })] },
      "OutOfmemory",
      `Node didn't have enough resource: memory, requested: ${6 * gibibyte}, used: ${3 * gibibyte}, capacity: ${8 * gibibyte}`,
    ],
    [
      "disk",
      vm({ resources: { requests: { "ephemeral-storage": "200Gi" } } }),
      {},
      "OutOfephemeral-storage",
      `Node didn't have enough resource: ephemeral-storage, requested: ${200 * gibibyte}, used: 0, capacity: ${100 * gibibyte}`,
    ],
    [
      "slots that are asked for",
      vm({ resources: { limits: { "podyard.dev/vm": "1" } } }),
      { otherPods: [other({ "podyard.dev/vm": "1" }), other({ "podyard.dev/vm": "1" })] },
      "OutOfpodyard.dev/vm",
      "Node didn't have enough resource: podyard.dev/vm, requested: 1, used: 2, capacity: 2",
    ],
    ["Pods", {}, { otherPods: [other({}), other({}), other({})] }, "OutOfpods", "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"],
    [
      "a port of the host",
      vm({ ports: [{ containerPort: 80, hostPort: 8080 }] }),
      { otherPods: [podOf(vm({ ports: [{ containerPort: 1, hostPort: 8080, hostIP: "127.0.0.1" }] }))] },
      "NodePorts",
      "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
    ],
  ])("%s", (_, spec, context, reason, message) => {
    expect(admitPod(podOf(spec), contextOf(context))).toEqual({ verdict: "reject", reason, message });
  });

  test("not a Pod that did not ask for one of the slots, which are all taken: it waits", () => {
    const asking = { "podyard.dev/vm": "1" };
    expect(admitPod(podOf(), contextOf({ otherPods: [other(asking), other(asking)] }))).toEqual({ verdict: "admit" });
  });

  test("a label for another operating system", () => {
    expect(admitPod(podOf({}, { labels: { "kubernetes.io/os": "windows" } }), contextOf())).toMatchObject({
      verdict: "reject",
      reason: "PodOSSelectorNodeLabelDoesNotMatch",
    });
  });

  test("finished Pods, resources of the cluster and other host ports count for nothing", () => {
    const finished = other({ cpu: "4" }, { phase: "Succeeded" });
    expect(
      admitPod(
        podOf({ ...vm({ ports: [{ containerPort: 1, hostPort: 53, protocol: "UDP" }], resources: { requests: { cpu: "3" } } }) }),
        contextOf({ otherPods: [finished, finished, finished, podOf(vm({ ports: [{ containerPort: 1, hostPort: 53 }] }))] }),
      ),
    ).toEqual({ verdict: "admit" });
  });
});

describe("node affinity", () => {
  const required = (
    ...nodeSelectorTerms: NonNullable<
      NonNullable<NonNullable<NonNullable<PodSpec["affinity"]>["nodeAffinity"]>["requiredDuringSchedulingIgnoredDuringExecution"]>["nodeSelectorTerms"]
    >
  ): Partial<PodSpec> => ({ affinity: { nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms } } } });
  const expression = (key: string, operator: string, ...values: readonly string[]) => ({ matchExpressions: [{ key, operator, values }] });

  test.each<[string, Partial<PodSpec>, boolean]>([
    ["In", required(expression("zone", "In", "x", "a")), true],
    ["In another", required(expression("zone", "In", "x")), false],
    ["NotIn", required(expression("zone", "NotIn", "x")), true],
    ["NotIn of an absent label", required(expression("none", "NotIn", "x")), true],
    ["Exists", required(expression("zone", "Exists")), true],
    ["DoesNotExist", required(expression("zone", "DoesNotExist")), false],
    ["Gt", required(expression("cores", "Gt", "7")), true],
    ["Lt", required(expression("cores", "Lt", "8")), false],
    ["Gt of what is no number", required(expression("zone", "Gt", "1")), false],
    ["any term suffices", required(expression("zone", "In", "x"), expression("cores", "Exists")), true],
    ["an empty term matches nothing", required({}), false],
    ["no term matches nothing", required(), false],
    ["the node's name", required({ matchFields: [{ key: "metadata.name", operator: "In", values: ["node-1"] }] }), true],
    ["another node's name", required({ matchFields: [{ key: "metadata.name", operator: "In", values: ["node-2"] }] }), false],
    ["the operating system is always known", { nodeSelector: { "kubernetes.io/os": "linux" } }, true],
    [
      "what is only preferred does not matter",
      { affinity: { nodeAffinity: { preferredDuringSchedulingIgnoredDuringExecution: [{ weight: 1, preference: expression("zone", "In", "x") }] } } },
      true,
    ],
  ])("%s", (_, spec, matches) => {
    expect(admitPod(podOf(spec), contextOf()).verdict).toBe(matches ? "admit" : "reject");
  });
});
