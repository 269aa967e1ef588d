/** Volumes on a real file system. What needs mounts runs as root on Linux only, and says so. */
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { PodyardError } from "../../contract/errors.ts";
import type { ConfigMap, Pod, PodSpec, Secret, Volume, VolumeMount } from "../../contract/kubernetes-api.generated.ts";
import { silentLogger } from "../../contract/logger.ts";
import { createVolumes } from "./create-volumes.ts";
import { canMount, mountsBelow } from "./mounts.ts";
import type { Volumes } from "./volumes.ts";

const uid = "11111111-2222-3333-4444-555555555555";
const hour = 3_600_000;
let directory: string;
let now: number;
let configMaps: Map<string, ConfigMap>;
let secrets: Map<string, Secret>;
let tokenCalls: { audience: string | undefined; seconds: number }[];
let apiIsAway: boolean;

beforeEach(() => {
  directory = realpathSync(mkdtempSync(join(tmpdir(), "podyard-volumes-")));
  now = Date.UTC(2030, 0, 1);
  configMaps = new Map();
  secrets = new Map();
  tokenCalls = [];
  apiIsAway = false;
});

afterEach(async () => {
  await volumes().teardown(uid);
  expect(await mountsBelow(directory)).toEqual([]);
  rmSync(directory, { recursive: true, force: true });
});

function volumes(): Volumes {
  return createVolumes({
    podsDirectory: directory,
    logger: silentLogger,
    now: () => now,
    node: { allocatable: () => ({ cpu: 4000, memory: 8 << 30 }) },
    objects: {
      configMap: async (_, name) => configMaps.get(name),
      secret: async (_, name) => secrets.get(name),
      async token(_, audience, seconds) {
        if (apiIsAway) throw new PodyardError("Unavailable", "the API server is away");
        tokenCalls.push({ audience, seconds });
        const claims = Buffer.from(JSON.stringify({ exp: now / 1000 + seconds, n: tokenCalls.length })).toString("base64url");
        return { token: `head.${claims}.signature`, expiresAt: new Date(now + seconds * 1000) };
      },
    },
  });
}

function podOf(list: readonly Volume[], spec: Partial<PodSpec> = {}): Pod {
  return { metadata: { name: "pod", namespace: "ns", uid, labels: { app: "a", tier: 'x"y' } }, spec: { containers: [{ name: "vm" }], volumes: list, ...spec } };
}

async function mountOf(list: readonly Volume[], mount: Partial<VolumeMount>, environment: Readonly<Record<string, string>> = {}) {
  const pod = podOf(list);
  const [resolved] = await volumes().resolveMounts(
    pod,
    { name: "c", volumeMounts: [{ name: list[0]?.name ?? "", mountPath: "/m", ...mount }] },
    new Map(Object.entries(environment)),
  );
  if (resolved === undefined) throw new Error("no mount");
  return resolved;
}

const at = (...path: readonly string[]): string => join(directory, uid, "volumes", ...path);

describe("ConfigMap, Secret and downward API volumes", () => {
  test("show all keys through the layout that watchers know, with modes", async () => {
    configMaps.set("settings", { data: { a: "1" }, binaryData: { b: Buffer.from([0, 255]).toString("base64") } });
    secrets.set("keys", { data: { id: Buffer.from("secret").toString("base64") } });
    const list: Volume[] = [
      { name: "c", configMap: { name: "settings", defaultMode: 0o640 } },
      { name: "s", secret: { secretName: "keys", items: [{ key: "id", path: "deep/er/id", mode: 0o400 }] } },
      {
        name: "d",
        downwardAPI: {
          items: [
            { path: "labels", fieldRef: { fieldPath: "metadata.labels" } },
            { path: "cpu", resourceFieldRef: { containerName: "vm", resource: "limits.cpu", divisor: "1m" } },
          ],
        },
      },
    ];
    await volumes().prepare(podOf(list));
    expect(readFileSync(at("configMap/c/a"), "utf8")).toBe("1");
    expect(readFileSync(at("configMap/c/b"))).toEqual(Buffer.from([0, 255]));
    expect(readlinkSync(at("configMap/c/a"))).toBe("..data/a");
    expect(readlinkSync(at("configMap/c/..data"))).toMatch(/^\.\.\d{4}_\d\d_\d\d_\d\d_\d\d_\d\d\.\d+$/);
    expect(statSync(at("configMap/c/a")).mode & 0o777).toBe(0o640);
    expect(statSync(at("secret/s/deep/er/id")).mode & 0o777).toBe(0o400);
    expect(readFileSync(at("downwardAPI/d/labels"), "utf8")).toBe('app="a"\ntier="x\\"y"');
    expect(readFileSync(at("downwardAPI/d/cpu"), "utf8")).toBe("4000");
    expect(statSync(join(directory, uid)).mode & 0o777).toBe(0o700);
    expect((await mountOf(list, {})).readOnly).toBe(true);
  });

  test("change as a whole, drop what is gone, and leave an unchanged set alone", async () => {
    configMaps.set("settings", { data: { a: "1", old: "x" } });
    const pod = podOf([{ name: "c", configMap: { name: "settings" } }]);
    await volumes().prepare(pod);
    const first = readlinkSync(at("configMap/c/..data"));
    await volumes().refresh(pod);
    expect(readlinkSync(at("configMap/c/..data"))).toBe(first);
    configMaps.set("settings", { data: { a: "2", new: "y" } });
    await volumes().refresh(pod);
    expect(readlinkSync(at("configMap/c/..data"))).not.toBe(first);
    expect(
      readdirSync(at("configMap/c"))
        .filter((name) => !name.startsWith(".."))
        .sort(),
    ).toEqual(["a", "new"]);
    expect(readdirSync(at("configMap/c")).filter((name) => /^\.\.\d/.test(name))).toHaveLength(1);
    expect(readFileSync(at("configMap/c/a"), "utf8")).toBe("2");
  });

  test("are repaired after a crash in the middle of a write", async () => {
    configMaps.set("settings", { data: { a: "1" } });
    const pod = podOf([{ name: "c", configMap: { name: "settings" } }]);
    mkdirSync(at("configMap/c/..2020_01_01_00_00_00.1"), { recursive: true });
    writeFileSync(at("configMap/c/..2020_01_01_00_00_00.1/a"), "half");
    symlinkSync("..2020_01_01_00_00_00.1", at("configMap/c/..data_tmp"));
    await volumes().prepare(pod);
    expect(readFileSync(at("configMap/c/a"), "utf8")).toBe("1");
    expect(
      readdirSync(at("configMap/c"))
        .sort()
        .filter((name) => name.startsWith("..")),
    ).toEqual([readlinkSync(at("configMap/c/..data")), "..data"].sort());
  });

  test.each([
    ["a missing ConfigMap", { configMap: { name: "x" } }, 'MountVolume.SetUp failed for volume "v" : configmap "x" not found'],
    ["a missing Secret", { secret: { secretName: "x" } }, 'MountVolume.SetUp failed for volume "v" : secret "x" not found'],
    [
      "a missing key",
      { configMap: { name: "there", items: [{ key: "k", path: "p" }] } },
      'MountVolume.SetUp failed for volume "v" : configmap references non-existent config key: k',
    ],
    [
      "a path that leaves",
      { configMap: { name: "there", items: [{ key: "a", path: "../../p" }] } },
      `MountVolume.SetUp failed for volume "v" : invalid path: must not contain '..': "../../p"`,
    ],
    [
      "a kind we do not have",
      { nfs: { server: "s", path: "/" } },
      'MountVolume.SetUp failed for volume "v" : spec.volumes: the kind of volume "v" is not supported',
    ],
  ])("refuse %s", async (_, source, message) => {
    configMaps.set("there", { data: { a: "1" } });
    await expect(volumes().prepare(podOf([{ name: "v", ...source }]))).rejects.toThrow(message);
  });

  test("optional objects may be missing, and appear later", async () => {
    const pod = podOf([
      {
        name: "v",
        projected: { sources: [{ configMap: { name: "x", optional: true } }, { secret: { name: "y", optional: true, items: [{ key: "k", path: "p" }] } }] },
      },
    ]);
    await volumes().prepare(pod);
    expect(readdirSync(at("projected/v")).filter((name) => !name.startsWith(".."))).toEqual([]);
    configMaps.set("x", { data: { a: "1" } });
    await volumes().refresh(pod);
    expect(readFileSync(at("projected/v/a"), "utf8")).toBe("1");
  });
});

describe("service account tokens", () => {
  const token: Volume = { name: "t", projected: { sources: [{ serviceAccountToken: { path: "token", expirationSeconds: 3607, audience: "" } }] } };
  const read = (): unknown => JSON.parse(Buffer.from(readFileSync(at("projected/t/token"), "utf8").split(".")[1] ?? "", "base64url").toString());

  test("are renewed at 80 % of their life, and taken up again by a new host process", async () => {
    const own = volumes();
    await own.prepare(podOf([token]));
    expect(tokenCalls).toEqual([{ audience: undefined, seconds: 3607 }]);
    expect(own.nextRefresh(uid)?.getTime()).toBe(now + 3607 * 800);
    now += 3607 * 790;
    await own.refresh(podOf([token]));
    expect(tokenCalls).toHaveLength(1);
    const restarted = volumes();
    await restarted.prepare(podOf([token]));
    expect(tokenCalls).toHaveLength(1);
    expect(restarted.nextRefresh(uid)?.getTime()).toBe(Date.UTC(2030, 0, 1) + 3607 * 800);
    now += 3607 * 20;
    await restarted.refresh(podOf([token]));
    expect(tokenCalls).toHaveLength(2);
    expect(read()).toMatchObject({ n: 2 });
  });

  test("outlast an absent API server as long as they are valid, and no longer", async () => {
    const own = volumes();
    await own.prepare(podOf([token]));
    apiIsAway = true;
    now += 3607 * 900;
    await own.refresh(podOf([token]));
    expect(read()).toMatchObject({ n: 1 });
    expect(own.nextRefresh(uid)?.getTime()).toBe(now + 30_000);
    now += hour;
    await expect(own.refresh(podOf([token]))).rejects.toThrow("the API server is away");
  });

  test.runIf(canMount())("belong to the one user of all containers, or to fsGroup", async () => {
    await volumes().prepare(podOf([token], { securityContext: { runAsUser: 1234, fsGroup: 4321 } }));
    const status = statSync(at("projected/t/token"));
    expect([status.uid, status.gid, status.mode & 0o777]).toEqual([1234, 4321, 0o640]);
  });
});

describe("emptyDir", () => {
  test("is writable for all, set up once, and tells when it is too big", async () => {
    const pod = podOf([{ name: "e", emptyDir: { sizeLimit: "64Ki" } }]);
    await volumes().prepare(pod);
    expect(statSync(at("emptyDir/e")).mode & 0o777).toBe(0o777);
    chmodSync(at("emptyDir/e"), 0o700);
    await volumes().prepare(pod);
    expect(statSync(at("emptyDir/e")).mode & 0o777).toBe(0o700);
    expect(await volumes().overLimit(pod)).toBeUndefined();
    writeFileSync(at("emptyDir/e/big"), Buffer.alloc(100_000, 1));
    expect(await volumes().overLimit(pod)).toEqual({ volumeName: "e", message: 'Usage of EmptyDir volume "e" exceeds the limit "64Ki". ' });
    const [usage] = await volumes().usage(uid);
    expect(usage?.usedBytes).toBeGreaterThanOrEqual(100_000);
    expect(usage?.capacityBytes).toBeGreaterThan(usage?.usedBytes ?? 0);
  });

  test.runIf(canMount())("in memory is a tmpfs of its size, mounted once, gone after teardown", async () => {
    const pod = podOf([{ name: "e", emptyDir: { medium: "Memory", sizeLimit: "1Mi" } }], { securityContext: { fsGroup: 777 } });
    await volumes().prepare(pod);
    await volumes().prepare(pod);
    expect(await mountsBelow(directory)).toEqual([at("emptyDir/e")]);
    expect(statSync(at("emptyDir/e")).gid).toBe(777);
    expect(() => writeFileSync(at("emptyDir/e/big"), Buffer.alloc(2 << 20))).toThrow(/ENOSPC/);
    await volumes().teardown(uid);
    expect(existsSync(join(directory, uid))).toBe(false);
    expect(await mountsBelow(directory)).toEqual([]);
  });

  test.runIf(canMount())("belongs to fsGroup with its setgid bit, links not followed", async () => {
    writeFileSync(join(directory, "outside"), "");
    mkdirSync(at("emptyDir/e"), { recursive: true });
    symlinkSync(join(directory, "outside"), at("emptyDir/e/link"));
    await volumes().prepare(podOf([{ name: "e", emptyDir: {} }], { securityContext: { fsGroup: 777 } }));
    expect([statSync(at("emptyDir/e")).gid, statSync(at("emptyDir/e")).mode & 0o2770]).toEqual([777, 0o2770]);
    expect([lstatSync(at("emptyDir/e/link")).gid, statSync(join(directory, "outside")).gid]).toEqual([777, 0]);
  });
});

describe("hostPath", () => {
  test.each<[string, string, string | undefined]>([
    ["Directory", "dir", undefined],
    ["Directory", "file", "is not a directory"],
    ["Directory", "none", "is not a directory"],
    ["File", "file", undefined],
    ["File", "dir", "is not a file"],
    ["DirectoryOrCreate", "none", undefined],
    ["DirectoryOrCreate", "file", "is not a directory"],
    ["FileOrCreate", "none", undefined],
    ["FileOrCreate", "dir", "is not a file"],
    ["Socket", "socket", undefined],
    ["Socket", "file", "is not a socket file"],
    ["CharDevice", "/dev/null", undefined],
    ["BlockDevice", "/dev/null", "is not a block device"],
    ["", "none", undefined],
    ["Other", "dir", "is an invalid volume type"],
  ])("type %s of %s", async (type, name, problem) => {
    mkdirSync(join(directory, "dir"));
    writeFileSync(join(directory, "file"), "");
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(join(directory, "socket"), resolve));
    const prepared = volumes().prepare(podOf([{ name: "h", hostPath: { path: name.startsWith("/") ? name : join(directory, name), type } }]));
    try {
      if (problem === undefined) await prepared;
      else await expect(prepared).rejects.toThrow(problem);
      if (problem === undefined && !name.startsWith("/")) expect(existsSync(join(directory, name))).toBe(true);
    } finally {
      await new Promise((resolve) => server.close(resolve));
    }
  });
});

describe("subPath", () => {
  const list: Volume[] = [{ name: "e", emptyDir: {} }];

  test("shows a part of the volume, created with the volume's mode", async () => {
    await volumes().prepare(podOf(list));
    const mount = await mountOf(list, { subPathExpr: "a/$(NAME)", readOnly: true }, { NAME: "b" });
    expect(mount).toMatchObject({ volumeName: "e", mountPath: "/m", readOnly: true, isFile: false, propagation: "None" });
    expect(statSync(at("emptyDir/e/a/b")).mode & 0o777).toBe(0o777);
    writeFileSync(join(mount.hostPath, "x"), "seen");
    expect(readFileSync(at("emptyDir/e/a/b/x"), "utf8")).toBe("seen");
  });

  test("shows one file of a ConfigMap", async () => {
    configMaps.set("settings", { data: { a: "1" } });
    const config: Volume[] = [{ name: "c", configMap: { name: "settings" } }];
    await volumes().prepare(podOf(config));
    const mount = await mountOf(config, { subPath: "a" });
    expect(mount).toMatchObject({ isFile: true, readOnly: true });
    expect(readFileSync(mount.hostPath, "utf8")).toBe("1");
  });

  test.each<[string, (volume: string) => void, string]>([
    ["a link to /etc", (volume) => symlinkSync("/etc", join(volume, "x")), "x"],
    ["a link upwards", (volume) => symlinkSync("../../..", join(volume, "x")), "x"],
    ["a link in the middle", (volume) => symlinkSync("/etc", join(volume, "x")), "x/ssl"],
    ["a link to be created through", (volume) => symlinkSync(directory, join(volume, "x")), "x/made/here"],
    ["a dangling link", (volume) => symlinkSync("/nowhere/at/all", join(volume, "x")), "x/y"],
  ])("does not escape by %s", async (_, arrange, subPath) => {
    await volumes().prepare(podOf(list));
    arrange(at("emptyDir/e"));
    await expect(mountOf(list, { subPath })).rejects.toThrow(/^failed to (create subPath directory|prepare subPath) for volumeMount "e" of container "c"$/);
    expect(existsSync(join(directory, "made"))).toBe(false);
    expect(existsSync("/nowhere")).toBe(false);
  });

  test.each([
    [{ subPath: "/abs" }, "error SubPath `/abs` must not be an absolute path"],
    [{ subPath: "a/../../b" }, "unable to provision SubPath `a/../../b`: must not contain '..'"],
    [{ subPathExpr: "$(NONE)" }, 'missing value for "NONE"'],
    [{ name: "other" }, 'there is no volume "other" in the Pod'],
  ])("refuses %j", async (mount, message) => {
    await volumes().prepare(podOf(list));
    await expect(mountOf(list, mount)).rejects.toThrow(message);
  });

  test.runIf(canMount())("keeps to what was checked when the directory is swapped for a link afterwards", async () => {
    await volumes().prepare(podOf(list));
    const { hostPath } = await mountOf(list, { subPath: "x" });
    writeFileSync(at("emptyDir/e/x/mine"), "");
    renameSync(at("emptyDir/e/x"), at("emptyDir/e/y"));
    symlinkSync("/etc", at("emptyDir/e/x"));
    expect(readdirSync(hostPath)).toEqual(["mine"]);
    expect(hostPath).toBe(join(directory, uid, "volume-subpaths/e/c/0"));
  });

  test.runIf(canMount())("finds its mount again when the container restarts", async () => {
    await volumes().prepare(podOf(list));
    const first = await mountOf(list, { subPath: "x" });
    expect(await mountOf(list, { subPath: "x" })).toEqual(first);
    expect(await mountsBelow(directory)).toHaveLength(1);
  });
});

describe("teardown", () => {
  test("deletes what is the volumes', leaves the rest, follows no link, and may be repeated", async () => {
    const outside = join(directory, "outside");
    mkdirSync(outside);
    writeFileSync(join(outside, "precious"), "");
    await volumes().prepare(podOf([{ name: "e", emptyDir: {} }]));
    symlinkSync(outside, at("emptyDir/e/link"));
    mkdirSync(at("emptyDir/e/locked"), { mode: 0o000 });
    await volumes().writeManagedFile(uid, "hosts", "x");
    writeFileSync(join(directory, uid, "record.json"), "{}");
    await volumes().teardown(uid);
    expect(readdirSync(join(directory, uid))).toEqual(["record.json"]);
    expect(existsSync(join(outside, "precious"))).toBe(true);
    await volumes().teardown(uid);
  });

  test.runIf(canMount())("unmounts what a container left in a volume before it deletes", async () => {
    const outside = join(directory, "outside");
    mkdirSync(outside);
    writeFileSync(join(outside, "precious"), "");
    await volumes().prepare(podOf([{ name: "e", emptyDir: {} }]));
    mkdirSync(at("emptyDir/e/point"));
    execFileSync("mount", ["--bind", outside, at("emptyDir/e/point")]);
    await volumes().teardown(uid);
    expect(existsSync(join(directory, uid))).toBe(false);
    expect(existsSync(join(outside, "precious"))).toBe(true);
  });

  test("refuses a UID that is a path", async () => {
    await expect(volumes().teardown("../x")).rejects.toThrow(/is not a UID/);
  });
});

test("hosts and resolv.conf keep their inode when they change", async () => {
  const path = await volumes().writeManagedFile(uid, "hosts", "one");
  const { ino } = statSync(path);
  expect(await volumes().writeManagedFile(uid, "hosts", "two")).toBe(path);
  expect([statSync(path).ino, readFileSync(path, "utf8"), statSync(path).mode & 0o777]).toEqual([ino, "two", 0o644]);
});

test("objects of volumes, environment and pull secrets are watched, each once", () => {
  const pod = podOf(
    [
      { name: "c", configMap: { name: "a" } },
      { name: "p", projected: { sources: [{ secret: { name: "b" } }] } },
    ],
    {
      imagePullSecrets: [{ name: "pull" }],
      containers: [{ name: "vm", envFrom: [{ configMapRef: { name: "a" } }], env: [{ name: "X", valueFrom: { secretKeyRef: { name: "b", key: "k" } } }] }],
    },
  );
  expect(
    volumes()
      .objectsOf(pod)
      .map(({ kind, namespace, name }) => `${kind} ${namespace}/${name}`),
  ).toEqual(["Secret ns/pull", "ConfigMap ns/a", "Secret ns/b"]);
});
