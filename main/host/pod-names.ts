/** Finds the Pod that a user names `namespace/pod`, or `pod` alone where that is unique. */
import { PodyardError } from "../contract/errors.ts";
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import { nameOf } from "./reports.ts";

/** Errors: NotFound, InvalidArgument (ambiguous; the message lists the candidates). */
export function findPod(pods: readonly Pod[], name: string): Pod {
  const matches = pods.filter((pod) => (name.includes("/") ? nameOf(pod) === name : pod.metadata?.name === name));
  const [pod] = matches;
  if (pod === undefined) throw new PodyardError("NotFound", `no Pod is called ${JSON.stringify(name)}`, { fix: "podyard pod list shows all Pods of this host" });
  if (matches.length > 1) throw new PodyardError("InvalidArgument", `${JSON.stringify(name)} names ${matches.map(nameOf).join(" and ")}: say which with namespace/pod`);
  return pod;
}
