/**
 * What a request to the kubelet server is, to the authorizer: a verb on subresources of this node. Pure; the table is the
 * kubelet's (pkg/kubelet/server/auth.go, 1.35, with KubeletFineGrainedAuthz): where there are two subresources, either will
 * do. Everything not named is `proxy`, so that an unknown path is refused before it is said to be unknown.
 */
const verbs: Readonly<Record<string, string>> = { POST: "create", GET: "get", PUT: "update", PATCH: "patch", DELETE: "delete" };

const subresources: Readonly<Record<string, readonly string[]>> = {
  pods: ["pods", "proxy"],
  runningpods: ["pods", "proxy"],
  healthz: ["healthz", "proxy"],
  configz: ["configz", "proxy"],
  stats: ["stats"],
  metrics: ["metrics"],
  logs: ["log"],
  checkpoint: ["checkpoint"],
  statusz: ["statusz"],
  flagz: ["configz"],
};

/** Empty for methods that Kubernetes has no verb for; only who may do everything may send those. */
export function verbOf(method: string): string {
  return Object.hasOwn(verbs, method) ? (verbs[method] ?? "") : "";
}

/** @param firstSegment of the path, decoded. */
export function subresourcesOf(firstSegment: string): readonly string[] {
  return Object.hasOwn(subresources, firstSegment) ? (subresources[firstSegment] ?? ["proxy"]) : ["proxy"];
}
