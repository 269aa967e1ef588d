/** Registry credentials of the user who types: `~/.docker/config.json` (or `$DOCKER_CONFIG`), with its credential helpers. */
import { homedir } from "node:os";
import { join } from "node:path";
import type { RegistryCredentials } from "../contract/image.ts";

export async function registryCredentials(reference: string): Promise<RegistryCredentials[]> {
  const { credentialsFromDockerConfig } = await import("../images/credentials.ts");
  const directory = process.env["DOCKER_CONFIG"] ?? join(homedir(), ".docker");
  return [...(await credentialsFromDockerConfig(join(directory, "config.json"), reference))];
}
