import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { credentialsFromDockerConfig, credentialsFromPullSecrets, isKeyFor } from "./credentials.ts";
import { parseReference } from "./reference.ts";

const basic = (user: string, password: string): string => Buffer.from(`${user}:${password}`).toString("base64");

describe("keys of a pull secret", () => {
  test.each([
    ["registry.example.com", "registry.example.com/a/b", true],
    ["https://registry.example.com", "registry.example.com/a", true],
    ["https://registry.example.com/v2/", "registry.example.com/a", true],
    ["http://registry.example.com/v1", "registry.example.com/a", true],
    ["registry.example.com:5000", "registry.example.com:5000/a", true],
    ["registry.example.com", "registry.example.com:5000/a", false],
    ["registry.example.com/team", "registry.example.com/team/vm", true],
    ["registry.example.com/team", "registry.example.com/other/vm", false],
    ["*.example.com", "registry.example.com/a", true],
    ["*.example.com", "a.b.example.com/a", false],
    ["*.example.com", "example.com/a", false],
    ["reg*.example.com", "registry.example.com/a", true],
    ["regi?try.example.com", "registry.example.com/a", true],
    ["*.example.com:5000/team", "r.example.com:5000/team/vm", true],
    ["https://index.docker.io/v1/", "busybox", true],
    ["docker.io", "team/vm", true],
    ["docker.io/team", "team/vm", true],
    ["https://index.docker.io/v1/", "ghcr.io/vm", false],
    ["r.gistry.example.com", "registry.example.com/a", false],
    ["ghcr.io.evil.example", "ghcr.io/vm", false],
  ])("%s covers %s: %s", (key, reference, expected) => {
    expect(isKeyFor(key, parseReference(reference))).toBe(expected);
  });
});

describe("pull secrets", () => {
  test("both kinds are read, the most specific key first, in the order of the secrets", () => {
    const found = credentialsFromPullSecrets(
      [
        { key: ".dockerconfigjson", value: JSON.stringify({ auths: { "ghcr.io": { auth: basic("wide", "p:w") }, "ghcr.io/team": { username: "narrow", password: "p" }, "quay.io": { auth: basic("no", "no") } } }) },
        { key: ".dockercfg", value: JSON.stringify({ "https://ghcr.io": { auth: basic("old", "p"), email: "x@example.com" } }) },
        { key: ".dockerconfigjson", value: JSON.stringify({ auths: { "ghcr.io": { auth: basic("u", ""), identitytoken: "refresh" } } }) },
      ],
      "ghcr.io/team/vm:v1",
    );
    expect(found).toEqual([
      { username: "narrow", password: "p" },
      { username: "wide", password: "p:w" },
      { username: "old", password: "p" },
      { username: "u", password: "", identityToken: "refresh" },
    ]);
  });

  test("an unusable payload is named and its content is not", () => {
    for (const value of ["{ secret-text", JSON.stringify({ auths: { host: { auth: 5, note: "secret-text" } } }), JSON.stringify(["secret-text"])]) {
      expect(() => credentialsFromPullSecrets([{ key: ".dockerconfigjson", value, name: "default/pull" }], "ghcr.io/vm")).toThrow(expect.objectContaining({ code: "InvalidArgument", message: expect.stringMatching(/^(?=.*default\/pull)(?!.*secret-text)/) }));
    }
    expect(credentialsFromPullSecrets([{ key: ".dockerconfigjson", value: JSON.stringify({ auths: { "ghcr.io": {} } }) }], "ghcr.io/vm")).toEqual([]);
  });
});

describe("docker config.json", () => {
  let directory: string;

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), "podyard-credentials-"));
    const helper = `#!/bin/sh
host=$(cat)
case "$1 $host" in
  "get helped.example.com") echo '{"ServerURL":"x","Username":"helper","Secret":"from-helper"}' ;;
  "get token.example.com") echo '{"ServerURL":"x","Username":"<token>","Secret":"identity"}' ;;
  "get https://index.docker.io/v1/") echo '{"ServerURL":"x","Username":"hub","Secret":"hub-secret"}' ;;
  "get broken.example.com") echo 'secret-text'; exit 3 ;;
  *) echo "credentials not found in native keychain"; exit 1 ;;
esac
`;
    await writeFile(join(directory, "docker-credential-podyardtest"), helper);
    await chmod(join(directory, "docker-credential-podyardtest"), 0o755);
    vi.stubEnv("PATH", `${directory}${delimiter}${process.env["PATH"] ?? ""}`);
  });

  afterAll(async () => {
    vi.unstubAllEnvs();
    await rm(directory, { recursive: true, force: true });
  });

  async function configure(config: unknown): Promise<string> {
    const path = join(directory, "config.json");
    await writeFile(path, JSON.stringify(config));
    return path;
  }

  test("a helper of the host is asked before the store, and entries are what is left", async () => {
    const path = await configure({ credHelpers: { "helped.example.com": "podyardtest" }, credsStore: "podyardtest", auths: { "plain.example.com": { auth: basic("plain", "p") } } });
    expect(await credentialsFromDockerConfig(path, "helped.example.com/vm")).toEqual([{ username: "helper", password: "from-helper" }]);
    expect(await credentialsFromDockerConfig(path, "token.example.com/vm")).toEqual([{ identityToken: "identity" }]);
    expect(await credentialsFromDockerConfig(path, "team/vm")).toEqual([{ username: "hub", password: "hub-secret" }]);
    expect(await credentialsFromDockerConfig(path, "plain.example.com/vm")).toEqual([{ username: "plain", password: "p" }]);
    expect(await credentialsFromDockerConfig(path, "other.example.com/vm")).toEqual([]);
    expect(await credentialsFromDockerConfig(join(directory, "absent.json"), "other.example.com/vm")).toEqual([]);
  });

  test("a helper that fails or is not there is named, with nothing it said", async () => {
    const failing = await configure({ credHelpers: { "broken.example.com": "podyardtest", "absent.example.com": "not-installed", "evil.example.com": "../evil" } });
    await expect(credentialsFromDockerConfig(failing, "broken.example.com/vm")).rejects.toMatchObject({ code: "Unavailable", message: expect.not.stringContaining("secret-text") });
    await expect(credentialsFromDockerConfig(failing, "absent.example.com/vm")).rejects.toMatchObject({ code: "Unavailable", fix: expect.stringContaining("docker-credential-not-installed") });
    await expect(credentialsFromDockerConfig(failing, "evil.example.com/vm")).rejects.toMatchObject({ code: "InvalidArgument" });
  });
});
