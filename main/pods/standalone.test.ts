import { mkdtemp, readdir, rm, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { silentLogger } from "../contract/logger.ts";
import { parseManifests } from "./standalone-manifests.ts";
import { createStandalone } from "./standalone.ts";

const pod = (name: string, extra = "") => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}}
spec:
  containers:
    - name: vm
      image: registry.example/macos:1
      ports: [{containerPort: 80}]
${extra}`;

describe("reading manifests", () => {
  it("fills in what the API server would", () => {
    const [item] = parseManifests(pod("a"), "a.yaml");
    expect(item?.object).toMatchObject({
      metadata: { name: "a", namespace: "default" },
      spec: { restartPolicy: "Always", terminationGracePeriodSeconds: 30, dnsPolicy: "ClusterFirst", containers: [{ imagePullPolicy: "IfNotPresent", ports: [{ protocol: "TCP" }] }] },
    });
  });

  const mistakes: [string, string, string][] = [
    ["another kind", "apiVersion: v1\nkind: Deployment\nmetadata: {name: a}", 'f.yaml:1: kind: "Deployment": expected Pod, Secret or ConfigMap'],
    ["no image", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: vm}]}", "f.yaml:1: spec.containers[0].image: is required"],
    ["a wrong value", `${pod("a")}\n  restartPolicy: Sometimes`, 'spec.restartPolicy: "Sometimes":'],
    ["a mount of nothing", pod("a", "      volumeMounts: [{name: data, mountPath: /data}]"), 'spec.containers[0].volumeMounts[0].name: "data": no volume'],
    ["the second document", `${pod("a")}\n---\n- 1\n`, "kind: missing"],
    ["broken YAML", "apiVersion: v1\nkind: [", "f.yaml:2:"],
  ];
  it.each(mistakes)("names file, path and value: %s", (_name, text, expected) => {
    expect(() => parseManifests(text, "f.yaml")).toThrow(expect.objectContaining({ code: "InvalidArgument", message: expect.stringContaining(expected) }));
  });

  it("keeps a Secret's values out of messages", () => {
    const text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {password: 'not base64!'}";
    expect(() => parseManifests(text, "s.yaml")).toThrow(expect.objectContaining({ message: expect.not.stringContaining("not base64") }));
  });
});

describe("a host without a cluster", () => {
  let directory = "";
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "podyard-standalone-"));
  });
  afterEach(async () => {
    await rm(directory, { recursive: true, force: true });
  });
  const node = { name: "host", addresses: () => ["127.0.0.1"], labels: () => ({}), allocatable: () => ({}), accepting: () => true, clusterDNS: () => undefined };
  const create = (manifests?: string) => createStandalone({ dataDirectory: directory, node, logger: silentLogger, ...(manifests === undefined ? {} : { manifestsDirectory: manifests }) });

  it("keeps applied Pods over restarts, under the same UID, until they are deleted and removed", async () => {
    const first = create();
    await using _first = await first.start();
    expect(await first.apply(pod("a"), "stdin")).toEqual([{ kind: "Pod", name: "default/a", action: "created" }]);
    expect(await first.apply(pod("a"), "stdin")).toEqual([{ kind: "Pod", name: "default/a", action: "unchanged" }]);
    const [uid = ""] = first.source.current().keys();
    const second = create();
    await using _second = await second.start();
    expect([...second.source.current().keys()]).toEqual([uid]);
    await second.deletePod({ namespace: "default", name: "a" }, 7);
    const deleting = second.source.current().get(uid);
    expect(deleting?.metadata).toMatchObject({ deletionGracePeriodSeconds: 7, deletionTimestamp: expect.any(String) });
    const third = create();
    await using _third = await third.start();
    expect(third.source.current().get(uid)?.metadata?.deletionTimestamp).toBe(deleting?.metadata?.deletionTimestamp);
    await third.reporter.remove(deleting ?? {});
    expect(third.source.current().size).toBe(0);
    expect(await readdir(join(directory, "applied"))).toEqual([]);
  });

  it("begins a changed Pod when the old one is gone, not before", async () => {
    const standalone = create();
    await using _running = await standalone.start();
    await standalone.apply(pod("a"), "stdin");
    const [old] = standalone.source.current().values();
    expect(await standalone.apply(pod("a", "      command: [true]".replace("true", '"true"')), "stdin")).toMatchObject([{ action: "configured" }]);
    expect([...standalone.source.current().values()]).toMatchObject([{ metadata: { uid: old?.metadata?.uid, deletionTimestamp: expect.any(String) } }]);
    await standalone.reporter.remove(old ?? {});
    const [next] = standalone.source.current().values();
    expect(next?.metadata?.uid).not.toBe(old?.metadata?.uid);
    expect(next?.metadata?.deletionTimestamp).toBeUndefined();
  });

  it("brings a Pod back that was applied again while it was being deleted", async () => {
    const standalone = create();
    await using _running = await standalone.start();
    await standalone.apply(pod("a"), "stdin");
    await standalone.deletePod({ namespace: "default", name: "a" });
    await standalone.apply(pod("a"), "stdin");
    const [deleting] = standalone.source.current().values();
    await standalone.reporter.remove(deleting ?? {});
    expect([...standalone.source.current().values()]).toMatchObject([{ metadata: { name: "a" } }]);
    expect([...standalone.source.current().values()][0]?.metadata?.deletionTimestamp).toBeUndefined();
  });

  it("watches a folder: new files, mistakes that end nothing, removed files", async () => {
    const manifests = await mkdtemp(join(tmpdir(), "podyard-manifests-"));
    try {
      const standalone = create(manifests);
      await using _running = await standalone.start();
      const changed = () => new Promise<void>((resolve) => {
        const stop = standalone.source.subscribe(() => {
          stop();
          resolve();
        });
      });
      const added = changed();
      await writeFile(join(manifests, "a.yaml"), pod("a"));
      await added;
      const [uid = ""] = standalone.source.current().keys();
      // A mistake in one file, and a good second one to know when it was read.
      const second = changed();
      await writeFile(join(manifests, "a.yaml"), "kind: [");
      await writeFile(join(manifests, "b.yaml"), pod("b"));
      await second;
      expect(standalone.source.current().get(uid)?.metadata?.deletionTimestamp).toBeUndefined();
      const removed = changed();
      await unlink(join(manifests, "a.yaml"));
      await removed;
      expect(standalone.source.current().get(uid)?.metadata?.deletionTimestamp).toEqual(expect.any(String));
      await expect(standalone.deletePod({ namespace: "default", name: "b" })).rejects.toMatchObject({ code: "Conflict" });
    } finally {
      await rm(manifests, { recursive: true, force: true });
    }
  });
});
