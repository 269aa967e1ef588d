/** Finding the Pod and container that a path names, with the kubelet's sentences when there is none. */
import type { Pod } from "../../contract/kubernetes-api.generated.ts";
import type { PodKey, PodRuntime } from "../../pods/pod-runtime.ts";

export interface NamedContainer {
  readonly name: string;
  readonly tty?: boolean;
}

export function findPod(pods: PodRuntime, key: PodKey): Pod | undefined {
  return pods
    .list()
    .find(({ metadata }) => metadata?.namespace === key.namespace && metadata.name === key.name && (key.uid === undefined || metadata.uid === key.uid));
}

/** Init and ephemeral containers included. */
export function findContainer(pod: Pod, name: string): NamedContainer | undefined {
  const spec = pod.spec;
  const containers: readonly NamedContainer[] = [...(spec?.containers ?? []), ...(spec?.initContainers ?? []), ...(spec?.ephemeralContainers ?? [])];
  return containers.find((container) => container.name === name);
}

/** From the parameters of a route. */
export function podKeyOf(parameters: Readonly<Record<string, string>>): PodKey {
  const { namespace = "", pod = "", uid } = parameters;
  return { namespace, name: pod, ...(uid === undefined ? {} : { uid }) };
}
