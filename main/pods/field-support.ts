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

export type Support =
  /** `test`: title in test/e2e/pods.e2e.test.ts. Values that `accepts` denies are refused with `message`. */
  | { readonly kind: "honoured"; readonly test: string; readonly accepts?: Accepts; readonly message?: string }
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

const honoured = (test: string, accepts?: Accepts, message?: string): Support => ({ kind: "honoured", test, ...(accepts && { accepts }), ...(message !== undefined && { message }) });
const refused = (message: string, accepts?: Accepts): Support => ({ kind: "refused", message, ...(accepts && { accepts }) });
const notApplicable = (why: string): Support => ({ kind: "not-applicable", why });
const both = (path: string, support: Support): FieldRow => ({ path, machine: support, sideCar: support });
const split = (path: string, machine: Support, sideCar: Support): FieldRow => ({ path, machine, sideCar });
const oneOf = (...allowed: readonly unknown[]): Accepts => (value) => allowed.includes(value);
const ignoresFalse: Accepts = oneOf(false);

const schedulerOnly = notApplicable("The scheduler acts on it before the Pod reaches this node.");
const inMachine = "container 0 is a virtual machine";
const noEnforcement = `${inMachine}, and the host cannot enforce it on a process inside the guest`;

/** https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/#safe-and-unsafe-sysctls */
const safeSysctls = [
  "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports",
  "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
];

const knownResource: Accepts = (_, { key }) => ["cpu", "memory", "ephemeral-storage", "podyard.dev/vm"].includes(key);
const resourceMessage = "only cpu, memory, ephemeral-storage and podyard.dev/vm exist here";
const noRoot: Accepts = (value, { pod, container }) => value !== true || (container?.securityContext?.runAsUser ?? pod.spec?.securityContext?.runAsUser ?? 0) !== 0;
const mountsDevice: Accepts = (value, { pod }) =>
  !["Socket", "CharDevice", "BlockDevice"].includes(String(value)) ||
  !(pod.spec?.containers[0]?.volumeMounts ?? []).some((mount) => pod.spec?.volumes?.some((volume) => volume.name === mount.name && volume.hostPath?.type === value));

const probe = (path: string, name: string): readonly FieldRow[] => [
  both(path, honoured(`${name} probes of a side-car run over exec, HTTP, TCP and gRPC`)),
  split(`${path}.exec`, honoured(`an exec ${name} probe runs in the guest`), honoured(`${name} probes of a side-car run over exec, HTTP, TCP and gRPC`)),
  split(`${path}.httpGet`, honoured(`an HTTP ${name} probe reaches the guest`), honoured(`${name} probes of a side-car run over exec, HTTP, TCP and gRPC`)),
];

/** Fields of a container, by role. */
export const containerFields: readonly FieldRow[] = [
  both("name", honoured("a machine and a side-car run as one Pod")),
  split("image", honoured("a machine and a side-car run as one Pod"), honoured("a machine and a side-car run as one Pod")),
  both("imagePullPolicy", honoured("imagePullPolicy Always, IfNotPresent and Never are followed")),
  both("command", honoured("command and args become the argv of the main process, byte for byte")),
  both("args", honoured("command and args become the argv of the main process, byte for byte")),
  both("workingDir", honoured("workingDir is where the main process starts")),
  both("env", honoured("the environment is resolved as the kubelet does")),
  both("env[].valueFrom.fileKeyRef", refused("variables from files are not supported; use a ConfigMap or Secret")),
  both("envFrom", honoured("the environment is resolved as the kubelet does")),
  both("ports", honoured("declared ports answer on the Pod's address")),
  both("ports[].hostPort", honoured("a hostPort answers on the node's address")),
  both("ports[].hostIP", honoured("a hostPort answers on the node's address")),
  split("resources.limits{}", honoured("limits size the machine", knownResource, resourceMessage), honoured("limits of a side-car are those of its cgroup", knownResource, resourceMessage)),
  split("resources.requests{}", honoured("limits size the machine", knownResource, resourceMessage), honoured("limits of a side-car are those of its cgroup", knownResource, resourceMessage)),
  both("resources.claims", refused("dynamic resource allocation is not available on this node")),
  both("resizePolicy", notApplicable("A resize in place is answered with PodResizePending, reason Infeasible.")),
  both("restartPolicy", refused("a restart policy of one container is not supported; use the Pod's, or initContainers[].restartPolicy: Always")),
  both("restartPolicyRules", refused("restart rules of one container are not supported; use the Pod's restartPolicy")),
  split("lifecycle.postStart", honoured("postStart gates the machine's running state and its failure restarts it"), honoured("hooks of a side-car run")),
  split("lifecycle.preStop", honoured("preStop runs in the guest before it is powered off, within the grace period"), honoured("hooks of a side-car run")),
  both("lifecycle.stopSignal", refused("a stop signal is not supported; the machine gets SIGTERM, a side-car the signal of its image", oneOf("SIGTERM"))),
  ...probe("livenessProbe", "liveness"),
  ...probe("readinessProbe", "readiness"),
  ...probe("startupProbe", "startup"),
  both("securityContext.runAsUser", honoured("runAsUser and runAsGroup are those of the main process")),
  both("securityContext.runAsGroup", honoured("runAsUser and runAsGroup are those of the main process")),
  split("securityContext.runAsNonRoot", honoured("runAsNonRoot refuses root", noRoot, "it can only be kept with a runAsUser other than 0: the user of the guest image is not known beforehand"), honoured("runAsNonRoot refuses root")),
  split("securityContext.privileged", refused(`${inMachine}; a process there may do in the guest what its user may`, ignoresFalse), honoured("side-cars get their security context")),
  split("securityContext.allowPrivilegeEscalation", refused(`${noEnforcement}; leave it out`, oneOf(true)), honoured("side-cars get their security context")),
  split("securityContext.capabilities", refused(`${noEnforcement}; leave them out`), honoured("side-cars get their security context")),
  split("securityContext.readOnlyRootFilesystem", refused(`${inMachine} with a disk of its own that it must be able to write`, ignoresFalse), honoured("side-cars get their security context")),
  split("securityContext.seccompProfile", honoured("a Pod with what the API server defaults runs", oneOf("RuntimeDefault", "Unconfined"), `${noEnforcement}; only RuntimeDefault and Unconfined pass`), honoured("side-cars get their security context", oneOf("RuntimeDefault", "Unconfined"), "only RuntimeDefault and Unconfined are supported")),
  split("securityContext.appArmorProfile", honoured("a Pod with what the API server defaults runs", oneOf("RuntimeDefault", "Unconfined"), `${noEnforcement}; only RuntimeDefault and Unconfined pass`), honoured("side-cars get their security context", oneOf("RuntimeDefault"), "only RuntimeDefault is supported")),
  both("securityContext.seLinuxOptions", refused("SELinux labels are not supported on this node")),
  both("securityContext.procMount", refused("only the default /proc is supported", oneOf("Default"))),
  both("securityContext.windowsOptions", refused("this is not a Windows node")),
  both("stdin", honoured("attach reaches the stdin and terminal of the main process")),
  both("stdinOnce", honoured("stdinOnce closes stdin after the first attach")),
  both("tty", honoured("attach reaches the stdin and terminal of the main process")),
  both("terminationMessagePath", honoured("the termination message is read")),
  both("terminationMessagePolicy", honoured("the termination message is read")),
  both("volumeDevices", refused("block devices from PersistentVolumeClaims are not available on this node")),
  both("volumeMounts", honoured("volumes appear at their mountPath in machine and side-car")),
  both("volumeMounts[].subPath", honoured("subPath and subPathExpr mount a part of a volume")),
  both("volumeMounts[].subPathExpr", honoured("subPath and subPathExpr mount a part of a volume")),
  both("volumeMounts[].readOnly", honoured("a read-only mount cannot be written")),
  both("volumeMounts[].recursiveReadOnly", refused("mounts below a read-only mount cannot be made read-only here", oneOf("Disabled", "IfPossible"))),
  split("volumeMounts[].mountPropagation", refused(`${inMachine}: mounts do not propagate over virtio-fs`, oneOf("None")), honoured("mounts of the host propagate to a side-car with HostToContainer")),
];

/** Rows that hold for init or ephemeral containers instead of those above. */
export const initContainerFields: readonly FieldRow[] = [
  both("restartPolicy", honoured("a native side-car starts before the machine and stops after it", oneOf("Always"), "only Always is supported")),
  both("image", honoured("init containers run to completion before the machine starts")),
];
export const ephemeralContainerFields: readonly FieldRow[] = [
  both("image", honoured("kubectl debug adds a container to a running Pod")),
  both("targetContainerName", notApplicable("It joins the process namespace of its target only under shareProcessNamespace; a guest's processes are never visible from outside.")),
];

/** Fields of the Pod. `machine` and `sideCar` differ where the field acts on containers. */
export const podFields: readonly FieldRow[] = [
  both("activeDeadlineSeconds", honoured("activeDeadlineSeconds fails the Pod")),
  both("affinity", schedulerOnly),
  both("affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution", honoured("a Pod whose nodeSelector or node affinity does not match is rejected")),
  both("automountServiceAccountToken", notApplicable("The API server adds the token volume or not; the volume is honoured.")),
  both("dnsConfig", honoured("dnsPolicy and dnsConfig shape resolution in machine and side-car")),
  both("dnsPolicy", honoured("dnsPolicy and dnsConfig shape resolution in machine and side-car")),
  both("enableServiceLinks", honoured("the environment is resolved as the kubelet does")),
  both("hostAliases", honoured("hostAliases resolve in machine and side-car")),
  both("hostIPC", refused("a Pod does not share the host's IPC namespace", ignoresFalse)),
  both("hostNetwork", refused("a Pod has a network of its own; use hostPort", ignoresFalse)),
  both("hostPID", refused("a Pod does not share the host's process namespace", ignoresFalse)),
  both("hostUsers", refused("user namespaces are not supported for side-cars; leave it out", oneOf(true))),
  both("hostname", honoured("hostname, subdomain and setHostnameAsFQDN name the machine and side-car")),
  both("hostnameOverride", honoured("hostname, subdomain and setHostnameAsFQDN name the machine and side-car")),
  both("imagePullSecrets", honoured("imagePullSecrets authenticate the pull of machine and side-car")),
  both("nodeName", honoured("a machine and a side-car run as one Pod")),
  both("nodeSelector", honoured("a Pod whose nodeSelector or node affinity does not match is rejected")),
  both("os", honoured("a Pod for another operating system is rejected")),
  both("overhead", refused("it belongs to a runtime class, and this node has none")),
  both("preemptionPolicy", schedulerOnly),
  both("priority", schedulerOnly),
  both("priorityClassName", schedulerOnly),
  both("readinessGates", honoured("a readiness gate holds back Ready")),
  both("resourceClaims", refused("dynamic resource allocation is not available on this node")),
  both("resources", honoured("limits size the machine", (_, { pod, key }) => (pod.spec?.containers.length ?? 0) === 1 && ["cpu", "memory"].includes(key), "resources of the Pod as a whole are supported only for cpu and memory of a Pod with a single container; set them per container")),
  both("resources.claims", refused("dynamic resource allocation is not available on this node")),
  both("restartPolicy", honoured("restartPolicy Always, OnFailure and Never are followed")),
  both("runtimeClassName", refused("this node has no runtime classes")),
  both("schedulerName", schedulerOnly),
  both("schedulingGates", schedulerOnly),
  split("securityContext.appArmorProfile", honoured("a Pod with what the API server defaults runs", oneOf("RuntimeDefault", "Unconfined"), `${noEnforcement}; only RuntimeDefault and Unconfined pass`), honoured("side-cars get their security context", oneOf("RuntimeDefault"), "only RuntimeDefault is supported")),
  both("securityContext.fsGroup", honoured("volumes belong to fsGroup")),
  both("securityContext.fsGroupChangePolicy", honoured("volumes belong to fsGroup")),
  both("securityContext.runAsUser", honoured("runAsUser and runAsGroup are those of the main process")),
  both("securityContext.runAsGroup", honoured("runAsUser and runAsGroup are those of the main process")),
  both("securityContext.runAsNonRoot", honoured("runAsNonRoot refuses root", (value, context) => context.pod.spec?.containers[0]?.securityContext?.runAsNonRoot === false || noRoot(value, { ...context, container: context.pod.spec?.containers[0] }), "it can only be kept with a runAsUser other than 0: the user of the guest image is not known beforehand")),
  both("securityContext.seLinuxChangePolicy", notApplicable("There are no SELinux labels on this node.")),
  both("securityContext.seLinuxOptions", refused("SELinux labels are not supported on this node")),
  both("securityContext.seccompProfile", honoured("side-cars get their security context", oneOf("RuntimeDefault", "Unconfined"), "only RuntimeDefault and Unconfined are supported")),
  split("securityContext.supplementalGroups", notApplicable("The groups of a process in the guest are those of its user there."), honoured("side-cars get their security context")),
  both("securityContext.supplementalGroupsPolicy", refused("only Merge is supported", oneOf("Merge"))),
  split("securityContext.sysctls", notApplicable("The guest has a kernel of its own."), honoured("safe sysctls are set for side-cars", (value, { pod }) => (pod.spec?.securityContext?.sysctls ?? []).every(({ name }) => safeSysctls.includes(name.replaceAll("/", "."))), `only safe ones are allowed: ${safeSysctls.join(", ")}`)),
  both("securityContext.windowsOptions", refused("this is not a Windows node")),
  both("serviceAccount", honoured("the service account's token is mounted and kept fresh")),
  both("serviceAccountName", honoured("the service account's token is mounted and kept fresh")),
  both("setHostnameAsFQDN", honoured("hostname, subdomain and setHostnameAsFQDN name the machine and side-car")),
  split("shareProcessNamespace", notApplicable("The guest's processes are never visible from outside."), honoured("shareProcessNamespace joins the side-cars")),
  both("subdomain", honoured("hostname, subdomain and setHostnameAsFQDN name the machine and side-car")),
  both("terminationGracePeriodSeconds", honoured("preStop runs in the guest before it is powered off, within the grace period")),
  both("tolerations", schedulerOnly),
  both("topologySpreadConstraints", schedulerOnly),
  both("volumes[].name", honoured("volumes appear at their mountPath in machine and side-car")),
  both("volumes[].configMap", honoured("ConfigMap, Secret, downward API and projected volumes are written and kept fresh")),
  both("volumes[].downwardAPI", honoured("ConfigMap, Secret, downward API and projected volumes are written and kept fresh")),
  both("volumes[].emptyDir", honoured("an emptyDir is shared by machine and side-car and evicts over its sizeLimit")),
  both("volumes[].emptyDir.medium", honoured("an emptyDir in memory is a tmpfs of its sizeLimit", (value, { operatingSystem }) => value === "" || (value === "Memory" && operatingSystem === "linux"), "only the default and, on Linux hosts, Memory are supported")),
  both("volumes[].hostPath", honoured("hostPath volumes are checked by their type")),
  both("volumes[].hostPath.type", honoured("hostPath volumes are checked by their type", mountsDevice, `${inMachine}: sockets and devices of the host cannot be shared with it`)),
  both("volumes[].image", refused("image volumes are not supported")),
  both("volumes[].persistentVolumeClaim", refused("persistent volumes are not available on this node")),
  both("volumes[].ephemeral", refused("persistent volumes are not available on this node")),
  both("volumes[].csi", refused("CSI drivers are not available on this node")),
  both("volumes[].nfs", refused("NFS volumes are not supported; mount it on the host and use hostPath")),
  both("volumes[].projected", honoured("ConfigMap, Secret, downward API and projected volumes are written and kept fresh")),
  both("volumes[].projected.sources[].serviceAccountToken", honoured("the service account's token is mounted and kept fresh")),
  both("volumes[].projected.sources[].clusterTrustBundle", refused("cluster trust bundles are not supported")),
  both("volumes[].projected.sources[].podCertificate", refused("Pod certificates are not supported")),
  ...[
    "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "fc", "flexVolume", "flocker", "gcePersistentDisk", "gitRepo", "glusterfs", "iscsi",
    "photonPersistentDisk", "portworxVolume", "quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume",
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
export function supportTests(): readonly string[] {
  const titles = new Set<string>();
  for (const row of [...podFields, ...containerFields, ...initContainerFields, ...ephemeralContainerFields]) {
    for (const support of [row.machine, row.sideCar]) if (support.kind === "honoured") titles.add(support.test);
  }
  return [...titles].sort();
}

function longestRow(rows: readonly FieldRow[], path: string): FieldRow | undefined {
  let best: FieldRow | undefined;
  for (const row of rows) {
    const rest = path.startsWith(row.path) ? path.slice(row.path.length) : undefined;
    if (rest !== undefined && (rest === "" || ".[{".includes(rest.charAt(0))) && row.path.length > (best?.path.length ?? -1)) best = row;
  }
  return best;
}
