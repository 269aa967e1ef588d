/**
 * What bad input gets: fields that cannot be honoured, hostile images, a full disk, missing programs, wrong settings,
 * damaged records. Everything runs on real parts without a cluster; the ports of a node are in access.e2e.test.ts.
 */
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { agodaParts, emptyBlob, emptyConfig, digestOfBytes, makeDisk, mebibyte, putImage } from "../images/fixture.ts";
import { pushContainerImage } from "../registry/container-image.ts";
import { startFaultProxy, type FaultProxy } from "../registry/fault-proxy.ts";
import { blobPath, startRegistry, type TestRegistry } from "../registry/registry.ts";
import { processesNaming, standaloneHost, type StandaloneHost } from "../support/standalone-host.ts";
import { eventually } from "./world.ts";

const sampleDisk = join(import.meta.dirname, "../../build/guest/disk.raw");
/** Slots enough for every Pod here: one that waits for its image has asked for its machine already. */
const start = ["run", "--log-format", "json", "--max-vms", "20"];
const everything = new AsyncDisposableStack();
let directory: string;
let cache: string;
let registry: TestRegistry;
let host: StandaloneHost;
let guest: string;

interface PodItem {
  readonly name: string;
  readonly phase: string;
  readonly reason: string;
  readonly podIP?: string;
  readonly restarts: number;
  readonly containers: readonly { readonly name: string; readonly state: string; readonly message?: string; readonly ready: boolean }[];
}

interface LogLine {
  readonly level: string;
  readonly message: string;
  readonly pod?: string;
  readonly reason?: string;
  readonly aside?: string;
}

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "podyard-bad-"));
  everything.defer(() => rmSync(directory, { recursive: true, force: true }));
  cache = join(directory, "cache");
  await mountDisk(cache, 1600);
  registry = everything.use(await startRegistry());
  host = everything.use(standaloneHost({ cacheDirectory: cache }));
  await host.start(start);
  guest = `${registry.host}/images/guest:1`;
  await host.podyardOk(["image", "push", guest, "--disk", sampleDisk, "--guest-user", "root", "--guest-password", "podyard"]);
  // Boots while the tests that need no machine run.
  await apply(host, manifest("machine", { image: guest, more: "\n      volumeMounts: [{ name: data, mountPath: /data }]\n  volumes: [{ name: data, emptyDir: {} }]" }));
});
afterAll(async () => {
  await everything.disposeAsync();
});

/** A file system of its own, as large as it says, that takes no space. */
async function mountDisk(path: string, megabytes: number): Promise<void> {
  const file = join(directory, "disk.ext4");
  writeFileSync(file, "");
  truncateSync(file, megabytes * mebibyte);
  execFileSync("mkfs.ext4", ["-q", "-m", "0", "-E", "lazy_itable_init=1", file]);
  mkdirSync(path);
  execFileSync("mount", ["-o", "loop", file, path]);
  everything.defer(() => void execFileSync("umount", ["-l", path]));
}

function manifest(name: string, { image, pod = "", more = "" }: { readonly image: string; readonly pod?: string; readonly more?: string }): string {
  return `
apiVersion: v1
kind: Pod
metadata: { name: ${name} }
spec:
  terminationGracePeriodSeconds: 1${pod}
  containers:
    - name: vm
      image: ${image}
      resources: { requests: { cpu: 250m, memory: 256Mi } }${more}
`;
}

async function apply(to: StandaloneHost, ...manifests: readonly string[]): Promise<void> {
  await to.podyardOk(["pod", "apply", "-f", "-"], { input: manifests.join("---") });
}

async function podOf(from: StandaloneHost, name: string): Promise<PodItem | undefined> {
  const { items } = JSON.parse(await from.podyardOk(["pod", "list", "-o", "json"])) as { readonly items: readonly PodItem[] };
  return items.find((pod) => pod.name === `default/${name}`);
}

/** Waits until container 0 of the Pod is in the state, and returns the Pod. */
async function untilState(from: StandaloneHost, name: string, state: string, seconds = 30): Promise<PodItem> {
  let pod: PodItem | undefined;
  const holds = async (): Promise<boolean> => {
    pod = await podOf(from, name);
    return pod?.containers[0]?.state === state;
  };
  await eventually(seconds * 1000, holds, () => `${name} in state ${state}: ${JSON.stringify(pod)}\n${from.output().slice(-3000)}`);
  if (pod === undefined) throw new Error(`${name} is gone`);
  return pod;
}

function logOf(from: StandaloneHost): readonly LogLine[] {
  return from.output().split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as LogLine);
}

function warningsOf(from: StandaloneHost, name: string): readonly LogLine[] {
  return logOf(from).filter(({ level, pod, reason }) => level === "warn" && pod === `default/${name}` && reason !== undefined && reason !== "MissingClusterDNS");
}

async function becameReady(): Promise<PodItem> {
  let pod: PodItem | undefined;
  const isReady = async (): Promise<boolean> => {
    pod = await podOf(host, "machine");
    // Of an adopted machine the host knows at once that it was ready, and a moment later where it is.
    return pod?.containers[0]?.ready === true && pod.podIP !== undefined;
  };
  await eventually(120_000, isReady, () => `${JSON.stringify(pod)}\n${host.output().slice(-3000)}`);
  if (pod === undefined) throw new Error("no machine");
  return pod;
}

describe("a Pod field that cannot be honoured", () => {
  test.each([
    ["hostPID: true", "\n  hostPID: true", "", "spec.hostPID"],
    ["a field of a later API", "\n  teleport: { to: mars }", "", "spec.teleport"],
    ["a device of the container", "", "\n      volumeDevices: [{ name: raw, devicePath: /dev/raw }]", "spec.containers[0].volumeDevices"],
  ])("%s leaves the Pod waiting, named, with one event and nothing used", async (_title, pod, more, field) => {
    const name = `refused-${randomBytes(3).toString("hex")}`;
    await apply(host, `${manifest(name, { image: guest, pod, more })}    - { name: side, image: "${registry.host}/none:1" }\n`);
    const refused = await untilState(host, name, "CreateContainerConfigError");
    expect(refused.phase).toBe("Pending");
    expect(refused.containers.map(({ state }) => state)).toEqual(["CreateContainerConfigError", "CreateContainerConfigError"]);
    for (const { message } of refused.containers) expect(message).toContain(field);
    const { uid } = (JSON.parse(await host.podyardOk(["pod", "list", "-o", "json"])) as { readonly items: readonly { readonly name: string; readonly uid: string }[] }).items.find((item) => item.name === `default/${name}`) ?? { uid: "none" };
    const id = uid.replaceAll("-", "");
    expect(existsSync(join(host.dataDirectory, "machines", id))).toBe(false);
    expect(existsSync(join(host.dataDirectory, "networks", `${id}.json`))).toBe(false);
    expect(JSON.stringify(await containersOf(host))).not.toContain(uid);
    expect(await host.podyardOk(["vm", "list"])).not.toContain(name);
    expect(warningsOf(host, name)).toMatchObject([{ reason: "UnsupportedPodField", message: expect.stringContaining(field) }]);
    await host.podyardOk(["pod", "delete", name]);
    await eventually(20_000, async () => (await podOf(host, name)) === undefined);
  });

  test("a container image in the first place is refused as that", async () => {
    const image = `${registry.host}/tools/busybox:1`;
    await pushContainerImage(image);
    await apply(host, manifest("container-first", { image }));
    const pod = await untilState(host, "container-first", "CreateContainerConfigError");
    expect(pod.containers[0]?.message).toMatch(/NotAVirtualMachineImage: spec\.containers\[0\]\.image/);
    expect(warningsOf(host, "container-first")).toMatchObject([{ reason: "NotAVirtualMachineImage" }]);
    await host.podyardOk(["pod", "delete", "container-first"]);
  });
});

describe("an image that cannot be used", () => {
  const escape = `escape-${randomBytes(6).toString("hex")}`;
  let proxy: FaultProxy;
  let before: readonly string[];

  beforeAll(async () => {
    const disk = join(directory, "small.raw");
    await makeDisk(disk, 8 * mebibyte, [{ offset: 0, length: 2 * mebibyte }]);
    const random = new Uint8Array(randomBytes(1000));
    await putImage(registry.host, "bad/unknown", "1", [random, emptyBlob], {
      schemaVersion: 2,
      mediaType: "application/vnd.oci.image.manifest.v1+json",
      config: emptyConfig,
      layers: [{ mediaType: "application/vnd.example.mystery", digest: digestOfBytes(random), size: random.length }],
    });
    const parts = agodaParts(randomBytes(5000), randomBytes(3000), `../../../../${escape}`);
    await putImage(registry.host, "bad/title", "1", [...parts.blobs, emptyBlob], { schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: emptyConfig, layers: [parts.disk, parts.auxiliary, parts.config] });
    await host.podyardOk(["image", "push", `${registry.host}/bad/platform:1`, "--disk", disk, "--arch", process.arch === "arm64" ? "amd64" : "arm64"]);
    for (const name of ["corrupt", "truncated"]) {
      await makeDisk(disk, 8 * mebibyte, [{ offset: 0, length: 2 * mebibyte }]);
      await host.podyardOk(["image", "push", `${registry.host}/bad/${name}:1`, "--disk", disk]);
    }
    // The registry's own copy is cut short: a connection that only breaks is continued.
    const { layers } = (await (await fetch(`http://${registry.host}/v2/bad/truncated/manifests/1`, { headers: { accept: "application/vnd.oci.image.manifest.v1+json" } })).json()) as { readonly layers: readonly { readonly digest: string; readonly size: number }[] };
    const [largest] = layers.toSorted((one, other) => other.size - one.size);
    truncateSync(blobPath(registry, largest?.digest ?? ""), 100_000);
    before = await cachedImages();
    proxy = everything.use(
      await startFaultProxy(registry.host, [
        { kind: "corrupt", path: /bad\/corrupt\/blobs/, atByte: 1_000, times: 1000 },
      ]),
    );
    await apply(host, ...["unknown", "platform", "corrupt", "truncated", "title"].map((name) => manifest(`bad-${name}`, { image: `${proxy.host}/bad/${name}:1` })));
  });

  test.each([
    ["unknown", /is an artifact of type .*, not a virtual machine image/],
    ["platform", /arm64|amd64/],
    ["corrupt", /corrupt|digest/],
    ["truncated", /corrupt|truncated|bytes|ended early|length/i],
    ["title", /title|\.\./],
  ])("%s: ErrImagePull, then ImagePullBackOff, with the cause", async (name, cause) => {
    const pod = await untilState(host, `bad-${name}`, "ImagePullBackOff", 60);
    expect(pod.phase).toBe("Pending");
    expect(pod.containers[0]?.message).toMatch(cause);
    const messages = warningsOf(host, `bad-${name}`).map(({ message }) => message);
    expect(messages).toEqual(expect.arrayContaining([expect.stringMatching(cause), "Error: ErrImagePull", "Error: ImagePullBackOff"]));
  });

  test("nothing of them is in the cache, and nothing outside of it", async () => {
    expect((await cachedImages()).filter((reference) => !before.includes(reference) && reference !== guest)).toEqual([]);
    expect(execFileSync("find", [tmpdir(), "/", "-maxdepth", "4", "-xdev", "-name", `*${escape}*`], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] })).toBe("");
    for (const name of ["unknown", "platform", "corrupt", "truncated", "title"]) await host.podyardOk(["pod", "delete", `bad-${name}`]);
  });

  async function cachedImages(): Promise<readonly string[]> {
    return (JSON.parse(await host.podyardOk(["image", "list", "-o", "json"])) as { readonly items: readonly { readonly references: readonly string[] }[] }).items.flatMap(({ references }) => references);
  }
});

describe("with a machine that runs", () => {
  let digest: string;
  beforeAll(async () => {
    await becameReady();
    digest = (JSON.parse(await host.podyardOk(["image", "inspect", guest])) as { readonly digest: string }).digest;
    await host.podyardOk(["vm", "exec", "machine", "--", "sh", "-c", "echo kept > /tmp/mark; echo kept > /data/mark"]);
  });

  test("no space left: the pull says how much is needed and free, the node is under disk pressure, the machine goes on", async () => {
    const conditionOf = async (type: string) => (JSON.parse((await host.podyard(["node", "status", "-o", "json"])).stdout) as { readonly conditions: readonly { readonly type: string; readonly status: string; readonly message: string }[] }).conditions.find((condition) => condition.type === type);
    expect(await conditionOf("DiskPressure")).toMatchObject({ status: "False" });
    const disk = join(directory, "large.raw");
    await makeDisk(disk, 64 * mebibyte, [{ offset: 0, length: 24 * mebibyte }]);
    const image = `${registry.host}/images/large:1`;
    await host.podyardOk(["image", "push", image, "--disk", disk]);
    const filler = join(cache, "filler");
    execFileSync("fallocate", ["-l", `${1400 * mebibyte}`, filler]);
    try {
      const pull = await host.podyard(["image", "pull", image]);
      expect(pull).toMatchObject({ exitCode: 1, stderr: expect.stringMatching(/needs \d+ bytes .* \d+ bytes are free/) });
      expect(pull.stderr).toContain("Free space");
      expect(await conditionOf("DiskPressure")).toMatchObject({ status: "True", message: "kubelet has disk pressure" });
      expect(await host.podyardOk(["vm", "exec", "machine", "--", "sh", "-c", "dd if=/dev/zero of=/tmp/new bs=64k count=16 2>/dev/null && cat /tmp/mark"])).toBe("kept\n");
    } finally {
      rmSync(filler);
    }
    expect(await host.podyardOk(["image", "pull", image])).toContain("pulled in");
    expect(await conditionOf("DiskPressure")).toMatchObject({ status: "False" });
  });

  test.each([
    ["machine, its network and its image", ["machines/ID/record.json", "networks/ID.json", "IMAGE/image.json"]],
    ["Pod and the host", ["pods/UID/pod.json", "settings.json", "networks/subnet.json", "acceleration.json", "gateway.json"]],
  ])("a damaged record of the %s is set aside with a warning, and the machine goes on", async (_title, names) => {
    const { items } = JSON.parse(await host.podyardOk(["vm", "list", "-o", "json"])) as { readonly items: readonly { readonly podUid: string; readonly podIP: string; readonly restartCount: number }[] };
    const [machine] = items;
    const uid = machine?.podUid ?? "";
    const image = join(cache, "images", digest.slice(7));
    const qemu = processesNaming([`-name\0guest=default/machine`]).filter((id) => readFileSync(`/proc/${id}/cmdline`, "utf8").includes(host.dataDirectory));
    expect(qemu).toHaveLength(1);
    await host.end("SIGKILL");
    const paths = names.map((name) => name.replace("UID", uid).replace("ID", uid.replaceAll("-", ""))).map((name) => (name.startsWith("IMAGE") ? join(image, "image.json") : join(host.dataDirectory, name)));
    for (const path of paths) writeFileSync(path, "{ torn");
    await host.start(start);
    const again = await becameReady();
    expect(processesNaming([`-name\0guest=default/machine`]).filter((id) => readFileSync(`/proc/${id}/cmdline`, "utf8").includes(host.dataDirectory))).toEqual(qemu);
    expect(again).toMatchObject({ podIP: machine?.podIP, restarts: 0 });
    expect(await host.podyardOk(["vm", "exec", "machine", "--", "cat", "/tmp/mark", "/data/mark"])).toBe("kept\nkept\n");
    const warnings = logOf(host).filter(({ level }) => level === "warn");
    // The one is written anew at each start anyway, the other is only a verdict to be found again.
    for (const path of paths.filter((candidate) => !/gateway|acceleration/.test(candidate))) {
      const [folder, name] = [path.slice(0, path.lastIndexOf("/")), path.slice(path.lastIndexOf("/") + 1)];
      expect(readdirSync(folder).filter((file) => file.startsWith(`${name}.`) && /\d{10}|\d{4}-\d\d-\d\dT/.test(file)), path).toHaveLength(1);
      expect(warnings.some((line) => JSON.stringify(line).includes(name)), path).toBe(true);
    }
    // A damaged image is repaired from the bytes at hand.
    await host.podyardOk(["image", "pull", guest]);
  });
});

describe("a program that is missing", () => {
  let bare: StandaloneHost;
  let wrapper: readonly string[];

  beforeAll(async () => {
    const work = join(directory, "hidden");
    mkdirSync(work);
    const script = join(directory, "hide.sh");
    // A mount namespace of its own, in which an overlay's white-outs hide the programs.
    writeFileSync(
      script,
      `set -e; work=$1; shift; mount -t tmpfs -o size=1m tmpfs "$work"
       for folder in bin sbin; do mkdir -p "$work/$folder/upper" "$work/$folder/work"; done
       while [ "$1" != -- ]; do mknod "$work/$(basename "$(dirname "$1")")/upper/$(basename "$1")" c 0 0; shift; done; shift
       for folder in bin sbin; do mount -t overlay overlay -o "lowerdir=/usr/$folder,upperdir=$work/$folder/upper,workdir=$work/$folder/work" "/usr/$folder"; done
       exec "$@"`,
    );
    const hidden = ["/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-aarch64", "/usr/sbin/dockerd"].filter((path) => existsSync(path));
    wrapper = ["unshare", "--mount", "sh", script, work, ...hidden, "--"];
    bare = everything.use(standaloneHost({ cacheDirectory: cache, wrapper }));
    await bare.start(["run", "--log-format", "json"]);
  });

  test("is one sentence with its fix, in the node's conditions, on the Pod, in its event and at the command line", async () => {
    const status = await bare.podyard(["node", "status", "-o", "json"]);
    expect(status.exitCode).toBe(1);
    const { ready, problems, conditions } = JSON.parse(status.stdout) as { readonly ready: boolean; readonly problems: readonly { readonly type: string; readonly message: string; readonly fix: string }[]; readonly conditions: readonly { readonly type: string; readonly message: string; readonly status: string }[] };
    expect(ready).toBe(false);
    expect(problems.map(({ type }) => type)).toEqual(["VirtualMachinesUnavailable", "ContainersUnavailable"]);
    const sentences = problems.map(({ message, fix }) => `${message.replace(/\.$/, "")}. ${fix}`);
    const [machines = "", containers = ""] = sentences;
    expect(machines).toMatch(/^qemu-system-\w+ is not installed\. apt-get install qemu-system-/);
    expect(containers).toMatch(/^No Docker engine is running.*\. Install Docker/);
    expect(conditions).toMatchObject(expect.arrayContaining([expect.objectContaining({ type: "VirtualMachinesUnavailable", status: "True", message: machines }), expect.objectContaining({ type: "ContainersUnavailable", status: "True", message: containers }), expect.objectContaining({ type: "Ready", status: "False", message: machines })]));
    const shown = (await bare.podyard(["node", "status"])).stdout;
    for (const { message, fix } of problems) expect(shown).toMatch(new RegExp(`${escapeRegExp(message)}\\n +${escapeRegExp(fix)}`));

    await apply(bare, `${manifest("lonely", { image: guest, more: "\n      imagePullPolicy: Never" })}    - { name: side, image: "${registry.host}/tools/busybox:1" }\n`);
    const pods = async () => JSON.stringify(await podOf(bare, "lonely"));
    await eventually(30_000, async () => (await podOf(bare, "lonely"))?.containers.every(({ message }) => sentences.some((sentence) => message?.includes(sentence))) === true, pods);
    const events = warningsOf(bare, "lonely").map(({ message }) => message);
    for (const sentence of sentences) expect(events.some((message) => message.includes(sentence)), `${sentence} in ${events.join("\n")}`).toBe(true);
    await bare.podyardOk(["pod", "delete", "lonely", "--grace-period", "0"]);

    await using demo = standaloneHost({ cacheDirectory: cache, wrapper });
    await expect(demo.start(["demo"], { until: /Ctrl-C stops it/ })).rejects.toThrow(/ended with 1 /);
    expect(demo.output()).toContain(`podyard: ${problems[0]?.message}\n  ${problems[0]?.fix}\n`);
  });
});

describe("a wrong setting", () => {
  test.each<readonly [string, readonly string[], RegExp]>([
    ["kubeletPort: 70000", [], /bad\.yaml: kubeletPort: 70000: .*65535/],
    ["guest: { readinessTimeoutSeconds: soon }", [], /bad\.yaml: guest\.readinessTimeoutSeconds: "soon": .*number/],
    ["kubletPort: 1", [], /bad\.yaml: kubletPort: 1: there is no such setting \(there are: .*kubeletPort/],
    ["driver: hyperkit", [], /bad\.yaml: driver: "hyperkit": expected one of auto, virtualization, qemu/],
    ["a: [", [], /bad\.yaml is not valid YAML or JSON/],
    ["", ["--taint", "nonsense"], /command line: taint: "nonsense": expected key=value:Effect/],
    ["", ["--node-name", "Not_A_Name"], /command line: nodeName: "Not_A_Name": expected lower-case/],
    ["", ["--kubelet-port", "x"], /--kubelet-port <port>' argument 'x' is invalid.*0 to 65535/],
    ["", ["--driver", "hyperkit"], /Allowed choices are auto, virtualization, qemu/],
    ["", ["--manifests", "/does/not/exist"], /--manifests: \/does\/not\/exist is not a folder/],
    ["", ["--kubeconfig", "/does/not/exist"], /\/does\/not\/exist/],
  ])("%j %j ends with 2, the path, the value and what is allowed", async (text, args, message) => {
    const place = mkdtempSync(join(directory, "wrong-"));
    writeFileSync(join(place, "bad.yaml"), text);
    // The engine's address spares the start of one where the mistake is found late.
    const result = await host.podyard(["run", "--data-dir", join(place, "state"), "--cache-dir", join(place, "cache"), "--config", join(place, "bad.yaml"), ...args], { environment: { DOCKER_HOST: `unix://${join(place, "none.sock")}` } });
    expect(result).toMatchObject({ exitCode: 2, stdout: "", stderr: expect.stringMatching(message) });
    expect(result.stderr).not.toMatch(/\n +at /);
  });
});

function escapeRegExp(text: string): string {
  return text.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

/** What the host's engine runs or ran. */
function containersOf(of: StandaloneHost): Promise<unknown> {
  const [socketPath = ""] = execFileSync("find", [join(of.directory, "run"), "-name", "docker.sock"], { encoding: "utf8" }).split("\n");
  return new Promise((resolve, reject) => {
    const call = request({ socketPath, path: "/containers/json?all=1" }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
      response.on("end", () => resolve(JSON.parse(text)));
    });
    call.on("error", reject);
    call.end();
  });
}
