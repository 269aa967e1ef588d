/**
 * Every field of a PodSpec and what we do with it: for container 0, which is a virtual machine, and for side-cars, which
 * are Docker containers (init and ephemeral ones included). `admission.ts` refuses by this table, `docs/pod-support.md` is
 * generated from it, and a test fails for a field of the Kubernetes release that no row covers.
 *
 * A row covers its path and everything below it; the longest one counts. Fields that no row covers are refused, so that a
 * newer API cannot slip past us. Fields that defaulting or admission puts into every Pod must be honoured or harmless.
 */
import type { OperatingSystem } from "../contract/image.ts";
import type { Container, Pod } from "../contract/kubernetes-api.generated.ts";

/** What a predicate may look at besides the value. */
export interface FieldContext {
  readonly pod: Pod;
  /** Absent for fields of the Pod. */
  readonly container: Container | undefined;
  readonly operatingSystem: OperatingSystem;
  /** The map's key for fields like `nodeSelector{}`. */
  readonly key: string;
}

type Accepts = (value: unknown, context: FieldContext) => boolean;

/** The end-to-end test that shows a promise: a file of test/e2e and a title in it. */
export interface EndToEndTest {
  readonly file: string;
  readonly title: string;
}

export type Support =
  /** Values that `accepts` denies are refused with `message`. */
  | { readonly kind: "honoured"; readonly test: EndToEndTest; readonly accepts?: Accepts; readonly message?: string }
  /** `accepts`: values that change nothing and therefore pass, e.g. `false`. */
  | { readonly kind: "refused"; readonly message: string; readonly accepts?: Accepts }
  /** Has no meaning here, or is somebody else's business; `why` says so. */
  | { readonly kind: "not-applicable"; readonly why: string };

export interface FieldRow {
  /** Path as in pod-fields.generated.json; for containers relative to `containers[]`, `initContainers[]`, `ephemeralContainers[]`. */
  readonly path: string;
  readonly machine: Support;
  readonly sideCar: Support;
}

export type ContainerRole = "machine" | "sideCar";

const honoured = (test: EndToEndTest, accepts?: Accepts, message?: string): Support => ({
  kind: "honoured",
  test,
  ...(accepts && { accepts }),
  ...(message !== undefined && { message }),
});
const refused = (message: string, accepts?: Accepts): Support => ({ kind: "refused", message, ...(accepts && { accepts }) });
const notApplicable = (why: string): Support => ({ kind: "not-applicable", why });
const both = (path: string, support: Support): FieldRow => ({ path, machine: support, sideCar: support });
const split = (path: string, machine: Support, sideCar: Support): FieldRow => ({ path, machine, sideCar });
const oneOf =
  (...allowed: readonly unknown[]): Accepts =>
  (value) =>
    allowed.includes(value);
const ignoresFalse: Accepts = oneOf(false);

const inFile =
  (file: string) =>
  (title: string): EndToEndTest => ({ file, title });
const [pods, controllers, fields] = [inFile("pods.e2e.test.ts"), inFile("controllers.e2e.test.ts"), inFile("pod-fields.e2e.test.ts")];

/** A test strict about titles keeps these in step with test/e2e. */
const tests = {
  pair: pods("both images are pulled with the Pod's pull secret and the Pod becomes Ready"),
  environment: pods("environment comes from ConfigMap, Secret and the downward API"),
  volumes: pods("ConfigMap, Secret and emptyDir are mounted, and the emptyDir is shared"),
  network: pods("reach each other by name and answer on the Pod's address from the host"),
  deletion: pods("deletion stops machine and side-car within the grace period and leaves nothing"),
  command: controllers("a Job whose machine runs a command completes with its log and exit code"),
  restart: controllers("a failing command is restarted by restartPolicy with back-off, and --previous shows the last attempt"),
  containerRestart: fields("restartPolicy and restartPolicyRules of a container override the Pod's"),
  attach: controllers("kubectl run --rm -it gives a shell in a fresh machine"),
  process: fields("workingDir, runAsUser and runAsGroup are those of the main process, and runAsNonRoot refuses root"),
  names: fields("hostname, hostAliases, dnsPolicy and dnsConfig are seen in machine and side-car"),
  mounts: fields("subPath, subPathExpr, read-only, projected, hostPath and tmpfs mounts are seen in machine and side-car"),
  fsGroup: fields("volumes belong to fsGroup"),
  token: fields("the service account's token is accepted by the API server from machine and side-car"),
  limits: fields("limits size the machine and the side-car's cgroup"),
  security: fields("a side-car gets its security context, sysctls and the shared process namespace"),
  hostPort: fields("a hostPort answers on the node's address"),
  init: fields("init containers run first, and a native side-car from before the machine until after it"),
  probes: fields("probes over exec, HTTP and TCP decide about startup, readiness and restarts"),
  hooks: fields("postStart gates the machine and preStop runs within the grace period"),
  terminationMessage: fields("the termination message comes from its path, or from the log"),
  debug: fields("kubectl debug adds a container to a running Pod"),
  rejected: fields("a Pod that does not fit the node is rejected"),
  deadline: fields("activeDeadlineSeconds and an emptyDir over its sizeLimit fail the Pod"),
  readinessGate: fields("a readiness gate holds back Ready"),
  pullPolicy: fields("imagePullPolicy Always, IfNotPresent and Never are followed"),
  stdinOnce: fields("stdinOnce closes stdin after the first attach"),
} as const;

const schedulerOnly = notApplicable("The scheduler acts on it before the Pod reaches this node.");
const inMachine = "container 0 is a virtual machine";
const noEnforcement = `${inMachine}, and the host cannot enforce it on a process inside the guest`;

/** https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/#safe-and-unsafe-sysctls */
const safeSysctls = [
  "kernel.shm_rmid_forced",
  "net.ipv4.ip_local_port_range",
  "net.ipv4.tcp_syncookies",
  "net.ipv4.ping_group_range",
  "net.ipv4.ip_unprivileged_port_start",
  "net.ipv4.ip_local_reserved_ports",
  "net.ipv4.tcp_keepalive_time",
  "net.ipv4.tcp_fin_timeout",
  "net.ipv4.tcp_keepalive_intvl",
  "net.ipv4.tcp_keepalive_probes",
  "net.ipv4.tcp_rmem",
  "net.ipv4.tcp_wmem",
];

const knownResource: Accepts = (_, { key }) => ["cpu", "memory", "ephemeral-storage", "podyard.dev/vm"].includes(key);
const resourceMessage = "only cpu, memory, ephemeral-storage and podyard.dev/vm exist here";
const noRoot: Accepts = (value, { pod, container }) =>
  value !== true || (container?.securityContext?.runAsUser ?? pod.spec?.securityContext?.runAsUser ?? 0) !== 0;
const mountsDevice: Accepts = (value, { pod }) =>
  !["Socket", "CharDevice", "BlockDevice"].includes(String(value)) ||
  !(pod.spec?.containers[0]?.volumeMounts ?? []).some((mount) =>
    pod.spec?.volumes?.some((volume) => volume.name === mount.name && volume.hostPath?.type === value),
  );

/** Fields of a container, by role. */
export const containerFields: readonly FieldRow[] = [
  both("name", honoured(tests.pair)),
  both("image", honoured(tests.pair)),
  both("imagePullPolicy", honoured(tests.pullPolicy)),
  both("command", honoured(tests.command)),
  both("args", honoured(tests.command)),
  both("workingDir", honoured(tests.process)),
  both("env", honoured(tests.environment)),
  both("env[].valueFrom.fileKeyRef", refused("variables from files are not supported; use a ConfigMap or Secret")),
  both("envFrom", honoured(tests.environment)),
  both("ports", honoured(tests.network)),
  both("ports[].hostPort", honoured(tests.hostPort)),
  both("ports[].hostIP", honoured(tests.hostPort)),
  split("resources.limits{}", honoured(tests.limits, knownResource, resourceMessage), honoured(tests.limits, knownResource, resourceMessage)),
  split("resources.requests{}", honoured(tests.limits, knownResource, resourceMessage), honoured(tests.limits, knownResource, resourceMessage)),
  both("resources.claims", refused("dynamic resource allocation is not available on this node")),
  both("resizePolicy", notApplicable("A resize in place is answered with PodResizePending, reason Infeasible.")),
  both("restartPolicy", honoured(tests.containerRestart)),
  both("restartPolicyRules", honoured(tests.containerRestart)),
  both("restartPolicyRules[].action", honoured(tests.containerRestart, oneOf("Restart"), "only Restart is supported")),
  both("lifecycle.postStart", honoured(tests.hooks)),
  both("lifecycle.preStop", honoured(tests.hooks)),
  both("lifecycle.stopSignal", refused("a stop signal is not supported; the machine gets SIGTERM, a side-car the signal of its image", oneOf("SIGTERM"))),
  both("livenessProbe", honoured(tests.probes)),
  both("readinessProbe", honoured(tests.probes)),
  both("startupProbe", honoured(tests.probes)),
  both("securityContext.runAsUser", honoured(tests.process)),
  both("securityContext.runAsGroup", honoured(tests.process)),
  split(
    "securityContext.runAsNonRoot",
    honoured(tests.process, noRoot, "it can only be kept with a runAsUser other than 0: the user of the guest image is not known beforehand"),
    honoured(tests.process),
  ),
  split("securityContext.privileged", refused(`${inMachine}; a process there may do in the guest what its user may`, ignoresFalse), honoured(tests.security)),
  split("securityContext.allowPrivilegeEscalation", refused(`${noEnforcement}; leave it out`, oneOf(true)), honoured(tests.security)),
  split("securityContext.capabilities", refused(`${noEnforcement}; leave them out`), honoured(tests.security)),
  split(
    "securityContext.readOnlyRootFilesystem",
    refused(`${inMachine} with a disk of its own that it must be able to write`, ignoresFalse),
    honoured(tests.security),
  ),
  split(
    "securityContext.seccompProfile",
    honoured(tests.pair, oneOf("RuntimeDefault", "Unconfined"), `${noEnforcement}; only RuntimeDefault and Unconfined pass`),
    honoured(tests.security, oneOf("RuntimeDefault", "Unconfined"), "only RuntimeDefault and Unconfined are supported"),
  ),
  split(
    "securityContext.appArmorProfile",
    honoured(tests.pair, oneOf("RuntimeDefault", "Unconfined"), `${noEnforcement}; only RuntimeDefault and Unconfined pass`),
    honoured(tests.security, oneOf("RuntimeDefault"), "only RuntimeDefault is supported"),
  ),
  both("securityContext.seLinuxOptions", refused("SELinux labels are not supported on this node")),
  both("securityContext.procMount", refused("only the default /proc is supported", oneOf("Default"))),
  both("securityContext.windowsOptions", refused("this is not a Windows node")),
  both("stdin", honoured(tests.attach)),
  both("stdinOnce", honoured(tests.stdinOnce)),
  both("tty", honoured(tests.attach)),
  both("terminationMessagePath", honoured(tests.terminationMessage)),
  both("terminationMessagePolicy", honoured(tests.terminationMessage)),
  both("volumeDevices", refused("block devices from PersistentVolumeClaims are not available on this node")),
  both("volumeMounts", honoured(tests.volumes)),
  both("volumeMounts[].subPath", honoured(tests.mounts)),
  both("volumeMounts[].subPathExpr", honoured(tests.mounts)),
  both("volumeMounts[].readOnly", honoured(tests.mounts)),
  both("volumeMounts[].recursiveReadOnly", refused("mounts below a read-only mount cannot be made read-only here", oneOf("Disabled", "IfPossible"))),
  split("volumeMounts[].mountPropagation", refused(`${inMachine}: mounts do not propagate over virtio-fs`, oneOf("None")), honoured(tests.mounts)),
];

/** Rows that hold for init or ephemeral containers instead of those above. */
export const initContainerFields: readonly FieldRow[] = [both("restartPolicy", honoured(tests.init)), both("image", honoured(tests.init))];
export const ephemeralContainerFields: readonly FieldRow[] = [
  both("image", honoured(tests.debug)),
  both(
    "targetContainerName",
    notApplicable("It joins the process namespace of its target only under shareProcessNamespace; a guest's processes are never visible from outside."),
  ),
];

/** Fields of the Pod. `machine` and `sideCar` differ where the field acts on containers. */
export const podFields: readonly FieldRow[] = [
  both("activeDeadlineSeconds", honoured(tests.deadline)),
  both("affinity", schedulerOnly),
  both("affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution", honoured(tests.rejected)),
  both("automountServiceAccountToken", notApplicable("The API server adds the token volume or not; the volume is honoured.")),
  both("dnsConfig", honoured(tests.names)),
  both("dnsPolicy", honoured(tests.names)),
  both("enableServiceLinks", honoured(tests.environment)),
  both("hostAliases", honoured(tests.names)),
  both("hostIPC", refused("a Pod does not share the host's IPC namespace", ignoresFalse)),
  both("hostNetwork", refused("a Pod has a network of its own; use hostPort", ignoresFalse)),
  both("hostPID", refused("a Pod does not share the host's process namespace", ignoresFalse)),
  both("hostUsers", refused("user namespaces are not supported for side-cars; leave it out", oneOf(true))),
  both("hostname", honoured(tests.names)),
  both("hostnameOverride", honoured(tests.names)),
  both("imagePullSecrets", honoured(tests.pair)),
  both("nodeName", honoured(tests.pair)),
  both("nodeSelector", honoured(tests.rejected)),
  both("os", honoured(tests.rejected)),
  both("overhead", refused("it belongs to a runtime class, and this node has none")),
  both("preemptionPolicy", schedulerOnly),
  both("priority", schedulerOnly),
  both("priorityClassName", schedulerOnly),
  both("readinessGates", honoured(tests.readinessGate)),
  both("resourceClaims", refused("dynamic resource allocation is not available on this node")),
  both(
    "resources",
    honoured(
      tests.limits,
      (_, { pod, key }) => (pod.spec?.containers.length ?? 0) === 1 && ["cpu", "memory"].includes(key),
      "resources of the Pod as a whole are supported only for cpu and memory of a Pod with a single container; set them per container",
    ),
  ),
  both("resources.claims", refused("dynamic resource allocation is not available on this node")),
  both("restartPolicy", honoured(tests.restart)),
  both("runtimeClassName", refused("this node has no runtime classes")),
  both("schedulerName", schedulerOnly),
  both("schedulingGates", schedulerOnly),
  split(
    "securityContext.appArmorProfile",
    honoured(tests.pair, oneOf("RuntimeDefault", "Unconfined"), `${noEnforcement}; only RuntimeDefault and Unconfined pass`),
    honoured(tests.security, oneOf("RuntimeDefault"), "only RuntimeDefault is supported"),
  ),
  both("securityContext.fsGroup", honoured(tests.fsGroup)),
  both("securityContext.fsGroupChangePolicy", honoured(tests.fsGroup)),
  both("securityContext.runAsUser", honoured(tests.process)),
  both("securityContext.runAsGroup", honoured(tests.process)),
  both(
    "securityContext.runAsNonRoot",
    honoured(
      tests.process,
      (value, context) =>
        context.pod.spec?.containers[0]?.securityContext?.runAsNonRoot === false || noRoot(value, { ...context, container: context.pod.spec?.containers[0] }),
      "it can only be kept with a runAsUser other than 0: the user of the guest image is not known beforehand",
    ),
  ),
  both("securityContext.seLinuxChangePolicy", notApplicable("There are no SELinux labels on this node.")),
  both("securityContext.seLinuxOptions", refused("SELinux labels are not supported on this node")),
  both("securityContext.seccompProfile", honoured(tests.security, oneOf("RuntimeDefault", "Unconfined"), "only RuntimeDefault and Unconfined are supported")),
  split("securityContext.supplementalGroups", notApplicable("The groups of a process in the guest are those of its user there."), honoured(tests.security)),
  both("securityContext.supplementalGroupsPolicy", refused("only Merge is supported", oneOf("Merge"))),
  split(
    "securityContext.sysctls",
    notApplicable("The guest has a kernel of its own."),
    honoured(
      tests.security,
      (value, { pod }) => (pod.spec?.securityContext?.sysctls ?? []).every(({ name }) => safeSysctls.includes(name.replaceAll("/", "."))),
      `only safe ones are allowed: ${safeSysctls.join(", ")}`,
    ),
  ),
  both("securityContext.windowsOptions", refused("this is not a Windows node")),
  both("serviceAccount", honoured(tests.token)),
  both("serviceAccountName", honoured(tests.token)),
  both("setHostnameAsFQDN", honoured(tests.names)),
  split("shareProcessNamespace", notApplicable("The guest's processes are never visible from outside."), honoured(tests.security)),
  both("subdomain", honoured(tests.names)),
  both("terminationGracePeriodSeconds", honoured(tests.deletion)),
  both("tolerations", schedulerOnly),
  both("topologySpreadConstraints", schedulerOnly),
  both("volumes[].name", honoured(tests.volumes)),
  both("volumes[].configMap", honoured(tests.volumes)),
  both("volumes[].downwardAPI", honoured(tests.volumes)),
  both("volumes[].emptyDir", honoured(tests.volumes)),
  both("volumes[].emptyDir.sizeLimit", honoured(tests.deadline)),
  both(
    "volumes[].emptyDir.medium",
    honoured(
      tests.mounts,
      (value, { operatingSystem }) => value === "" || (value === "Memory" && operatingSystem === "linux"),
      "only the default and, on Linux hosts, Memory are supported",
    ),
  ),
  both("volumes[].hostPath", honoured(tests.mounts)),
  both("volumes[].hostPath.type", honoured(tests.mounts, mountsDevice, `${inMachine}: sockets and devices of the host cannot be shared with it`)),
  both("volumes[].image", refused("image volumes are not supported")),
  both("volumes[].persistentVolumeClaim", refused("persistent volumes are not available on this node")),
  both("volumes[].ephemeral", refused("persistent volumes are not available on this node")),
  both("volumes[].csi", refused("CSI drivers are not available on this node")),
  both("volumes[].nfs", refused("NFS volumes are not supported; mount it on the host and use hostPath")),
  both("volumes[].projected", honoured(tests.mounts)),
  both("volumes[].secret", honoured(tests.volumes)),
  both("volumes[].projected.sources[].serviceAccountToken", honoured(tests.token)),
  both("volumes[].projected.sources[].clusterTrustBundle", refused("cluster trust bundles are not supported")),
  both("volumes[].projected.sources[].podCertificate", refused("Pod certificates are not supported")),
  ...[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "iscsi",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
  ].map((kind) => both(`volumes[].${kind}`, refused("this kind of volume is not available on this node"))),
  both("workloadRef", schedulerOnly),
];

const containerLists = ["containers", "initContainers", "ephemeralContainers"] as const;
export type ContainerList = (typeof containerLists)[number];

/** The row for a path as in pod-fields.generated.json (`containers[].image`, `volumes[].nfs.path`), or undefined. */
export function findFieldRow(path: string): FieldRow | undefined {
  const match = /^(containers|initContainers|ephemeralContainers)\[\]\.(.*)$/s.exec(path);
  const list = containerLists.find((name) => name === match?.[1]);
  return list === undefined || match === null ? longestRow(podFields, path) : findContainerRow(list, match[2] ?? "");
}

/** The row for a container's field by its path relative to the container. */
export function findContainerRow(list: ContainerList, path: string): FieldRow | undefined {
  const own = list === "initContainers" ? initContainerFields : list === "ephemeralContainers" ? ephemeralContainerFields : [];
  return longestRow(own, path) ?? longestRow(containerFields, path);
}

/** Which column counts: only the first of `containers` is the machine. */
export function roleOf(list: ContainerList, index: number): ContainerRole {
  return list === "containers" && index === 0 ? "machine" : "sideCar";
}

/** All end-to-end tests that honoured rows refer to. */
export function supportTests(): readonly EndToEndTest[] {
  return Object.values(tests);
}

function longestRow(rows: readonly FieldRow[], path: string): FieldRow | undefined {
  let best: FieldRow | undefined;
  for (const row of rows) {
    const rest = path.startsWith(row.path) ? path.slice(row.path.length) : undefined;
    if (rest !== undefined && (rest === "" || ".[{".includes(rest.charAt(0))) && row.path.length > (best?.path.length ?? -1)) best = row;
  }
  return best;
}
