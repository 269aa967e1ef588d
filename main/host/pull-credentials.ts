/** Whose credentials a Pod pulls with: its imagePullSecrets, then its ServiceAccount's; without a cluster, the user's docker config. */
import { homedir } from "node:os";
import { join } from "node:path";
import { PodyardError } from "../contract/errors.ts";
import type { RegistryCredentials } from "../contract/image.ts";
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import { credentialsFromDockerConfig, credentialsFromPullSecrets, type PullSecretPayload } from "../images/credentials.ts";
import type { PodObjects } from "../kubernetes/cluster.ts";

const payloadKeys = [".dockerconfigjson", ".dockercfg"] as const;

/** Errors: InvalidArgument (a Secret's payload is malformed), Unavailable. A Secret that does not exist is passed over, as by the kubelet. */
export async function pullCredentials(pod: Pod, reference: string, objects: PodObjects, isStandalone: boolean): Promise<readonly RegistryCredentials[]> {
  const namespace = pod.metadata?.namespace ?? "default";
  const own = pod.spec?.imagePullSecrets ?? [];
  // The API server's admission copies the ServiceAccount's pull secrets into a Pod that names none; a Pod that names some has only its own then.
  const account = pod.spec?.serviceAccountName;
  const shared = account === undefined || isStandalone ? [] : ((await objects.serviceAccount(namespace, account).catch(forbidden))?.imagePullSecrets ?? []);
  const names = new Set([...own, ...shared].flatMap(({ name }) => (name === undefined || name === "" ? [] : [name])));
  const payloads: PullSecretPayload[] = [];
  for (const name of names) {
    const secret = await objects.secret(namespace, name).catch(forbidden);
    for (const key of payloadKeys) {
      const encoded = secret?.data?.[key];
      if (encoded !== undefined) payloads.push({ key, value: Buffer.from(encoded, "base64").toString("utf8"), name: `${namespace}/${name}` });
    }
  }
  const fromSecrets = credentialsFromPullSecrets(payloads, reference);
  if (!isStandalone) return fromSecrets;
  const directory = process.env["DOCKER_CONFIG"] ?? join(homedir(), ".docker");
  return [...fromSecrets, ...(await credentialsFromDockerConfig(join(directory, "config.json"), reference))];
}

/** A node may read only what its Pods name; older clusters do not show it ServiceAccounts at all. */
function forbidden(error: unknown): undefined {
  if (error instanceof PodyardError && error.code === "Forbidden") return undefined;
  throw error;
}
