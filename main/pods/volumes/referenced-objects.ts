/** Which ConfigMaps and Secrets a Pod refers to: by volumes, environment and pull secrets. Pure. */
import type { Container, Pod } from "../../contract/kubernetes-api.generated.ts";

export interface ObjectReference {
  readonly kind: "Secret" | "ConfigMap";
  readonly namespace: string;
  readonly name: string;
}

/** Each object once; optional ones too, since they may appear later. */
export function referencedObjects(pod: Pod): readonly ObjectReference[] {
  const namespace = pod.metadata?.namespace ?? "";
  const found = new Map<string, ObjectReference>();
  const add = (kind: ObjectReference["kind"], name: string | undefined): void => {
    if (name !== undefined && name !== "") found.set(`${kind}/${name}`, { kind, namespace, name });
  };
  for (const { name } of pod.spec?.imagePullSecrets ?? []) add("Secret", name);
  for (const volume of pod.spec?.volumes ?? []) {
    add("ConfigMap", volume.configMap?.name);
    add("Secret", volume.secret?.secretName);
    for (const source of volume.projected?.sources ?? []) {
      add("ConfigMap", source.configMap?.name);
      add("Secret", source.secret?.name);
    }
  }
  const containers: readonly Pick<Container, "env" | "envFrom">[] = [
    ...(pod.spec?.initContainers ?? []),
    ...(pod.spec?.containers ?? []),
    ...(pod.spec?.ephemeralContainers ?? []),
  ];
  for (const { env = [], envFrom = [] } of containers) {
    for (const { configMapRef, secretRef } of envFrom) {
      add("ConfigMap", configMapRef?.name);
      add("Secret", secretRef?.name);
    }
    for (const { valueFrom } of env) {
      add("ConfigMap", valueFrom?.configMapKeyRef?.name);
      add("Secret", valueFrom?.secretKeyRef?.name);
    }
  }
  return [...found.values()];
}
