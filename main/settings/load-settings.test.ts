import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { silentLogger } from "../contract/logger.ts";
import { loadSettings } from "./load-settings.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "podyard-settings-"));
});
afterEach(() => {
  rmSync(directory, { recursive: true });
});

const load = (options: { flags?: Record<string, unknown>; environment?: Record<string, string>; config?: string }) => {
  const configFile = options.config === undefined ? undefined : join(directory, "podyard.yaml");
  if (configFile !== undefined) writeFileSync(configFile, options.config ?? "");
  return loadSettings({ flags: options.flags ?? {}, environment: options.environment ?? {}, configFile, dataDirectory: directory, logger: silentLogger });
};

test("defaults are those of the contract", async () => {
  const settings = await load({});
  expect(settings.kubeletPort).toBe(10250);
  expect(settings.taint).toBe("virtual-kubelet.io/provider=macos-vz:NoSchedule");
  expect(settings.defaultSize).toEqual({ darwin: { cpu: "4", memory: "8Gi" }, linux: { cpu: "1", memory: "1Gi" } });
});

test("flags win over environment, environment over the file, deep maps are merged", async () => {
  const settings = await load({
    flags: { kubeletPort: 3 },
    environment: { KUBELET_PORT: "2", VZ_SSH_USER: "ci", VZ_SSH_READINESS_TIMEOUT: "1m30s", VKUBELET_TAINT_VALUE: "mine" },
    config: "kubeletPort: 1\nnodeName: mac-1\nguest:\n  password: secret\n  user: file\n",
  });
  expect(settings.kubeletPort).toBe(3);
  expect(settings.nodeName).toBe("mac-1");
  expect(settings.guest).toMatchObject({ user: "ci", password: "secret", readinessTimeoutSeconds: 90 });
  expect(settings.taint).toBe("virtual-kubelet.io/provider=mine:NoSchedule");
});

test.each([
  ["kubeletPort: 70000", /podyard\.yaml: kubeletPort: 70000: .*65535/],
  ["driver: hyperkit", /podyard\.yaml: driver: "hyperkit": expected one of auto, virtualization, qemu/],
  ["guest: {usr: me}", /podyard\.yaml: guest\.usr: "me": there is no such setting/],
  ["kubletPort: 1", /kubletPort: 1: there is no such setting \(there are: nodeName, /],
  ["taint: foo", /taint: "foo": expected key=value:Effect/],
  ["- a", /expected a map of settings at the top, found a list/],
  ["a: [", /is not valid YAML or JSON/],
])("%s is refused with path, value and what is allowed", async (config, message) => {
  await expect(load({ config })).rejects.toThrow(message);
});

test("an unreadable settings.json is set aside and start goes on", async () => {
  writeFileSync(join(directory, "settings.json"), "{ not json");
  await expect(load({})).resolves.toMatchObject({ kubeletPort: 10250 });
  expect(readdirSync(directory).some((name) => name.startsWith("settings.json.unreadable-"))).toBe(true);
});
