/** A side-car's resources and security context as the engine wants them. Pure. https://kubernetes.io/docs/tasks/configure-pod-container/security-context/ */
import type { Container, EphemeralContainer, Pod } from "../contract/kubernetes-api.generated.ts";
import type { ContainerSpecification, EngineImage } from "../containers/container-engine.ts";
import { ContainerProblem } from "./pod-context.ts";
import { parseQuantity, quantityMilliValue, quantityValue } from "./resources.ts";

type Options = Partial<
  Pick<
    ContainerSpecification,
    | "cpuLimit"
    | "cpuShares"
    | "memoryLimit"
    | "user"
    | "groups"
    | "privileged"
    | "readOnlyRootFileSystem"
    | "capabilitiesAdd"
    | "capabilitiesDrop"
    | "noNewPrivileges"
    | "seccompProfile"
    | "shareProcessNamespace"
    | "hostProcessNamespace"
    | "stopSignal"
  >
>;

/** Errors: ContainerProblem (runAsNonRoot and the image runs as root). */
export function sidecarOptions(pod: Pod, container: Container | EphemeralContainer, image: Pick<EngineImage, "user">): Options {
  const podSecurity = pod.spec?.securityContext;
  const security = container.securityContext;
  const limits = container.resources?.limits;
  const requests = container.resources?.requests;
  const userId = security?.runAsUser ?? podSecurity?.runAsUser;
  const groupId = security?.runAsGroup ?? podSecurity?.runAsGroup;
  if ((security?.runAsNonRoot ?? podSecurity?.runAsNonRoot) === true) {
    const imageUser = image.user.split(":")[0] ?? "";
    if (userId === 0) throw new ContainerProblem("CreateContainerConfigError", `container's runAsUser breaks non-root policy (pod: "${pod.metadata?.name}_${pod.metadata?.namespace}(${pod.metadata?.uid})", container: ${container.name})`);
    if (userId === undefined && (imageUser === "" || imageUser === "0" || imageUser === "root")) {
      throw new ContainerProblem("CreateContainerConfigError", `container has runAsNonRoot and image will run as root (pod: "${pod.metadata?.name}_${pod.metadata?.namespace}(${pod.metadata?.uid})", container: ${container.name})`);
    }
    if (userId === undefined && !/^\d+$/.test(imageUser)) {
      throw new ContainerProblem("CreateContainerConfigError", `container has runAsNonRoot and image has non-numeric user (${imageUser}), cannot verify user is non-root (container: ${container.name})`);
    }
  }
  const groups = [...(podSecurity?.supplementalGroups ?? []), ...(podSecurity?.fsGroup === undefined ? [] : [podSecurity.fsGroup])].map(String);
  const seccomp = (security?.seccompProfile ?? podSecurity?.seccompProfile)?.type;
  const cpuRequest = requests?.cpu ?? limits?.cpu;
  const user = userId === undefined ? (groupId === undefined ? undefined : `${image.user.split(":")[0] || "0"}:${groupId}`) : groupId === undefined ? String(userId) : `${userId}:${groupId}`;
  const stopSignal = container.lifecycle?.stopSignal;
  return {
    ...(limits?.cpu === undefined ? {} : { cpuLimit: Number(parseQuantity(limits.cpu)) }),
    // As the kubelet: 1024 shares per core, at least 2.
    ...(cpuRequest === undefined ? {} : { cpuShares: Math.min(262_144, Math.max(2, Math.floor((quantityMilliValue(cpuRequest) * 1024) / 1000))) }),
    ...(limits?.memory === undefined ? {} : { memoryLimit: quantityValue(limits.memory) }),
    ...(user === undefined ? {} : { user }),
    ...(groups.length === 0 ? {} : { groups }),
    ...(security?.privileged === undefined ? {} : { privileged: security.privileged }),
    ...(security?.readOnlyRootFilesystem === undefined ? {} : { readOnlyRootFileSystem: security.readOnlyRootFilesystem }),
    ...(security?.capabilities?.add === undefined ? {} : { capabilitiesAdd: security.capabilities.add }),
    ...(security?.capabilities?.drop === undefined ? {} : { capabilitiesDrop: security.capabilities.drop }),
    ...(security?.allowPrivilegeEscalation === undefined ? {} : { noNewPrivileges: !security.allowPrivilegeEscalation }),
    ...(seccomp === "Unconfined" || seccomp === "RuntimeDefault" ? { seccompProfile: seccomp } : {}),
    ...(pod.spec?.shareProcessNamespace === undefined ? {} : { shareProcessNamespace: pod.spec.shareProcessNamespace }),
    ...(pod.spec?.hostPID === true ? { hostProcessNamespace: true } : {}),
    ...(stopSignal === undefined ? {} : { stopSignal }),
  };
}
