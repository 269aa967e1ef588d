/** Who logs in to a guest: a Secret that the Pod names, here of a user whose login shell is fish, which quotes differently. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { applyPod, podManifest, waitReady } from "./manifests.ts";
import { rawExec } from "./raw-exec.ts";
import { startWorld, type World } from "./world.ts";

let world: World;
let namespace: string;
beforeAll(async () => {
  world = await startWorld();
  namespace = await world.namespace();
  await world.kubectlOk(["-n", namespace, "create", "secret", "generic", "login", "--from-literal=username=fish", "--from-literal=password=podyard"]);
  await applyPod(world, podManifest(world, namespace, "fishy", { sidecar: false, metadata: { annotations: { "podyard.dev/guest-login-secret": "login" } }, spec: { imagePullSecrets: [{ name: "registry" }, { name: "login" }] } }));
  await waitReady(world, namespace, "fishy");
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

const exec = (argv: readonly string[], env: Record<string, string> = {}) => world.kubectlRaw(["-n", namespace, "exec", "fishy", "--", ...argv], { env });

test("the Pod's Secret says who logs in, and that user's login shell is fish", async () => {
  expect((await exec(["id", "-un"])).stdout.toString().trim()).toBe("fish");
  expect((await exec(["grep", "^fish:", "/etc/passwd"])).stdout.toString().trim()).toMatch(/:\/usr\/bin\/fish$/);
});

test.each([
  ["WebSocket", {}],
  ["SPDY", { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: "false" }],
])("arguments arrive exactly over %s, whatever the login shell", async (_transport, env) => {
  const words = ["a  b", 'c"d', "e'f", "$HOME", "\\n", "", "two\nlines"];
  expect((await exec(["printf", "%s|", ...words], env)).stdout.toString()).toBe(words.map((word) => `${word}|`).join(""));
  const long = "x".repeat(100 * 1024);
  expect((await exec(["sh", "-c", 'printf %s "$1" | wc -c', "sh", long], env)).stdout.toString().trim()).toBe(String(long.length));
  expect((await exec(["sh", "-c", "kill -9 $$"], env)).exitCode).toBe(137);
});

test("a byte that is not UTF-8 arrives", async () => {
  const path = `/api/v1/namespaces/${namespace}/pods/fishy/exec?container=vm&stdout=true&stderr=true&command=printf&command=%25s&command=%FF%FE`;
  expect([...(await rawExec(world.cluster, path))]).toEqual([0xff, 0xfe]);
});
