/**
 * What `npm start` promises: the sample runs without a cluster, every command of the CLI works on it, the host may be
 * killed and started again, and Ctrl-C leaves nothing behind. One host and one boot for the sample's tests, in order.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { startFaultProxy } from "../registry/fault-proxy.ts";
import { startRegistry } from "../registry/registry.ts";
import { type MachineState, machineState } from "../support/machine-state.ts";
import { mountsBelow, processesNaming, standaloneHost, type StandaloneHost } from "../support/standalone-host.ts";
import { openTerminal } from "../support/terminal.ts";
import { eventually } from "./world.ts";

const root = join(import.meta.dirname, "../..");
const command = join(root, "main/cli/podyard.mjs");
const sampleDisk = join(root, "build/guest/disk.raw");
const sampleReady = /Ctrl-C stops it/;

let host: StandaloneHost;
let before: MachineState;
beforeAll(async () => {
  before = machineState();
  host = standaloneHost();
  await host.start(["demo", "--gateway-port", "0"], { until: sampleReady });
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

interface MachineItem {
  readonly name: string;
  readonly podUid: string;
  readonly ready: boolean;
  readonly restartCount: number;
  readonly podIP: string;
  readonly state: string;
}

async function items<Item>(args: readonly string[]): Promise<readonly Item[]> {
  return (JSON.parse(await host.podyardOk([...args, "--output", "json"])) as { readonly items: readonly Item[] }).items;
}

describe("the sample", () => {
  test("is shown as table, JSON and YAML", async () => {
    expect(await host.podyardOk(["vm", "list"])).toMatch(/^NAME +STATE .*\ndefault\/sample +Ready +0 /);
    expect(await items<MachineItem>(["vm", "list"])).toMatchObject([{ name: "default/sample", state: "Running", ready: true, podIP: expect.stringMatching(/^10\./) }]);
    expect(parse(await host.podyardOk(["vm", "ls", "-o", "yaml"]))).toEqual({ items: await items(["vm", "list"]) });
    expect(await host.podyardOk(["pod", "list"])).toMatch(/default\/sample +2\/2 +Running/);
    expect(await items(["image", "list"])).toMatchObject([{ references: ["podyard.dev/sample-guest:latest"], usedBy: [expect.any(String)] }]);
    expect(JSON.parse(await host.podyardOk(["node", "status", "-o", "json"]))).toMatchObject({ mode: "standalone", ready: true, problems: [], conditions: expect.arrayContaining([expect.objectContaining({ type: "DiskPressure" }), expect.objectContaining({ type: "Ready", status: "True" })]) });
  });

  test("exec prints the guest's kernel, passes input and environment on, and returns the command's exit code", async () => {
    expect(await host.podyardOk(["vm", "exec", "default/sample", "--", "uname", "-a"])).toMatch(/^Linux sample \d+\.\d+/);
    const codes = await Promise.all(
      [["sh", "-c", "exit 7"], ["no-such-program"], ["/etc/passwd"]].map(async (argv) => (await host.podyard(["vm", "exec", "sample", "--", ...argv])).exitCode),
    );
    expect(codes).toEqual([7, 127, 126]);
    const absent = await host.podyard(["vm", "exec", "absent", "--", "true"]);
    expect(absent).toMatchObject({ exitCode: 125, stdout: "", stderr: expect.stringContaining('no Pod is called "absent"') });
    const both = await host.podyard(["vm", "exec", "-i", "-e", "MARK=a b", "-w", "/tmp", "sample", "--", "sh", "-c", 'cat; echo "$MARK"; pwd; echo error >&2'], { input: "typed\n" });
    expect(both).toEqual({ stdout: "typed\na b\n/tmp\n", stderr: "error\n", exitCode: 0 });
    expect(await host.podyardOk(["vm", "exec", "-c", "web", "sample", "--", "ls", "/"])).toContain("www");
  });

  test("the side-car serves what the machine writes, under its name and on the Pod's address", async () => {
    await host.podyardOk(["vm", "exec", "sample", "--", "sh", "-c", "echo from the machine > /www/index.html"]);
    expect(await host.podyardOk(["vm", "exec", "sample", "--", "wget", "-qO-", "http://sidecars.pod.internal:8080/"])).toBe("from the machine\n");
    const [machine] = await items<MachineItem>(["vm", "list"]);
    expect(await (await fetch(`http://${machine?.podIP}:8080/`)).text()).toBe("from the machine\n");
    await eventually(10_000, async () => (await host.podyardOk(["vm", "logs", "sample", "-c", "web"])).includes("response:200"));
    expect(await host.podyardOk(["vm", "logs", "sample"])).toContain("podyard-guest ready");
    expect((await host.podyardOk(["vm", "logs", "sample", "--tail", "2"])).trimEnd().split("\n").length).toBeLessThanOrEqual(2);
  });

  test("the console is the machine's, and Ctrl-] leaves it", async () => {
    await using terminal = openTerminal([process.execPath, command, "vm", "console", "sample"], { env: host.environment });
    await terminal.expect(/Leave with Ctrl-\]/);
    terminal.type("\n");
    await terminal.expect(/[#$] /);
    terminal.type("echo tty is $((40+2)); uname -n\n");
    await terminal.expect(/tty is 42\s+sample/);
    terminal.type("\u001d");
    expect(await terminal.exit).toBe(0);
  });

  test("a shell in a terminal knows its size", async () => {
    await using terminal = openTerminal([process.execPath, command, "vm", "exec", "-it", "sample", "--", "sh"], { env: host.environment, rows: 31, columns: 97 });
    await terminal.expect(/[#$] /);
    terminal.type("stty size; exit 3\n");
    await terminal.expect(/31 97/);
    expect(await terminal.exit).toBe(3);
  });

  test("its image cannot be removed, and the refusal names the Pod", async () => {
    const refused = await host.podyard(["image", "remove", "podyard.dev/sample-guest:latest"]);
    expect(refused).toMatchObject({ exitCode: 1, stdout: "", stderr: expect.stringMatching(/is used by default\/sample(:.*)?\n {2}Delete these Pods first/) });
  });

  test("a second start says that one runs, and ends well; another run is refused and harms nothing", async () => {
    const child = spawn(process.execPath, [join(root, "resources/setup/start.ts"), "--data-dir", host.dataDirectory], { env: { ...host.environment }, stdio: ["ignore", "pipe", "inherit"] });
    let stdout = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    expect(await new Promise((resolve) => child.on("close", resolve))).toBe(0);
    expect(stdout).toMatch(new RegExp(`A host runs already \\(process ${host.processId}\\)`));
    const second = await host.podyard(["run"]);
    expect(second).toMatchObject({ exitCode: 1, stdout: "", stderr: expect.stringMatching(new RegExp(`A host \\(process ${host.processId}\\) runs already.*\\n {2}.*--data-dir`)) });
    expect(await host.podyardOk(["vm", "exec", "-c", "web", "sample", "--", "echo", "still here"])).toBe("still here\n");
  });

  test("after SIGKILL and a new start it is the same machine", async () => {
    await host.podyardOk(["vm", "exec", "sample", "--", "sh", "-c", "echo kept > /tmp/mark"]);
    const [machine] = await items<MachineItem>(["vm", "list"]);
    await host.end("SIGKILL");
    expect(await host.podyard(["vm", "list"])).toMatchObject({ exitCode: 1, stderr: expect.stringContaining("No host is running") });
    await host.start(["demo", "--gateway-port", "0"], { until: sampleReady });
    expect(await items<MachineItem>(["vm", "list"])).toEqual([machine]);
    expect(await host.podyardOk(["vm", "exec", "sample", "--", "cat", "/tmp/mark"])).toBe("kept\n");
    expect(await host.podyardOk(["vm", "exec", "-c", "web", "sample", "--", "cat", "/www/index.html"])).toBe("from the machine\n");
  });

  test("SIGINT stops everything it started", async () => {
    const [machine] = await items<MachineItem>(["vm", "list"]);
    const during = machineState();
    expect(during.interfaces.length).toBeGreaterThan(before.interfaces.length);
    expect(await host.end("SIGINT")).toBe(0);
    expect(host.output()).toContain("all that it started are stopped");
    expect(processesNaming([host.directory])).toEqual([]);
    expect(mountsBelow(host.directory)).toEqual([]);
    const id = machine?.podUid.slice(0, 8) ?? "none";
    const { interfaces, rules, routes, sockets, namespaces } = machineState();
    const left = [...interfaces, ...rules, ...routes, ...sockets, ...namespaces].filter((line) => line.includes(id) || line.includes(machine?.podIP ?? "none") || line.includes(host.directory));
    expect(left).toEqual([]);
    // Others may use the machine meanwhile; of what is new, nothing may be ours.
    const ours = during.rules.filter((rule) => !before.rules.includes(rule) && rule.includes(id)).map((rule) => /PODYARD-[0-9a-f]{8}/.exec(rule)?.[0] ?? "");
    expect(ours.length).toBeGreaterThan(0);
    expect(rules.filter((rule) => ours.some((chain) => rule.includes(chain)))).toEqual([]);
    expect(existsSync(join(host.dataDirectory, "gateway.json"))).toBe(false);
  });
});

describe("a host without Pods", () => {
  let registryLogin = "";
  beforeAll(async () => {
    // No engine is needed here, and none is started.
    writeFileSync(join(host.directory, "settings.yaml"), JSON.stringify({ dockerHost: join(host.directory, "none.sock") }));
    await host.start(["run"]);
  });

  test("Pods are applied with what they refer to, kept over a restart, changed and deleted", async () => {
    const manifest = `
apiVersion: v1
kind: Secret
metadata: { name: key }
stringData: { token: abc }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: words }
data: { greeting: hello }
---
apiVersion: v1
kind: Pod
metadata: { name: applied }
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: vm
      image: 127.0.0.1:1/none:1
      imagePullPolicy: Never
      env:
        - { name: TOKEN, valueFrom: { secretKeyRef: { name: key, key: token } } }
        - { name: GREETING, valueFrom: { configMapKeyRef: { name: words, key: greeting } } }
`;
    expect(await host.podyardOk(["pod", "apply", "-f", "-"], { input: manifest })).toBe("secret/default/key created\nconfigmap/default/words created\npod/default/applied created\n");
    expect(await host.podyardOk(["pod", "apply", "-f", "-"], { input: manifest })).toMatch(/pod\/default\/applied unchanged/);
    const podOf = async () => (await items<{ readonly name: string; readonly uid: string; readonly reason: string }>(["pod", "list"])).find(({ name }) => name === "default/applied");
    await eventually(20_000, async () => (await podOf())?.reason === "ErrImageNeverPull", async () => JSON.stringify(await podOf()));
    const pod = await podOf();
    expect(await host.end("SIGTERM")).toBe(0);
    await host.start(["run"]);
    await eventually(20_000, async () => (await podOf())?.reason === "ErrImageNeverPull", async () => JSON.stringify(await podOf()));
    expect((await podOf())?.uid).toBe(pod?.uid);
    expect(await host.podyardOk(["pod", "apply", "-f", "-"], { input: manifest.replace("none:1", "none:2") })).toMatch(/pod\/default\/applied configured/);
    await eventually(20_000, async () => ![undefined, pod?.uid].includes((await podOf())?.uid), async () => JSON.stringify(await podOf()));
    expect(await host.podyardOk(["pod", "delete", "applied"])).toBe("pod/applied deleted\n");
    await eventually(20_000, async () => (await podOf()) === undefined);
    expect(await host.podyard(["pod", "delete", "applied"])).toMatchObject({ exitCode: 1, stderr: expect.stringContaining('no Pod is called "applied"') });
  });

  test("images are pushed, pulled with the user's credentials, inspected and removed", async () => {
    const login = { user: "ci", password: "from-the-docker-config" };
    await using registry = await startRegistry({ htpasswd: login });
    const reference = `${registry.host}/images/guest:1`;
    const push = ["image", "push", reference, "--disk", sampleDisk, "--guest-user", "root", "--guest-password", "podyard"];
    expect(await host.podyard(push)).toMatchObject({ exitCode: 1, stdout: "", stderr: expect.stringMatching(/401|unauthori|credential/i) });
    registryLogin = Buffer.from(`${login.user}:${login.password}`).toString("base64");
    mkdirSync(join(host.directory, "docker"), { recursive: true });
    writeFileSync(join(host.directory, "docker/config.json"), JSON.stringify({ auths: { [registry.host]: { auth: registryLogin } } }));
    const digest = (await host.podyardOk(push)).trim().split("\n")[1] ?? "";
    expect(digest).toMatch(/^sha256:[0-9a-f]{64}$/);
    expect(await host.podyardOk(["image", "pull", reference])).toMatch(new RegExp(`^${reference} pulled in .* s\\n${digest}\\n$`));
    expect(await host.podyardOk(["image", "pull", reference])).toMatch(/is up to date/);
    expect(await host.podyardOk(["image", "pull", "-q", "--policy", "IfNotPresent", reference])).toBe(`${digest}\n`);
    expect(JSON.parse(await host.podyardOk(["image", "inspect", reference]))).toMatchObject({ digest, references: [reference], operatingSystem: "linux", diskSize: 261_095_424, usedBy: [] });
    expect(await host.podyardOk(["image", "list"])).toContain(reference);
    expect(await host.podyardOk(["image", "push", `${registry.host}/images/copy:2`, "--from", reference])).toContain(`${registry.host}/images/copy:2\nsha256:`);
    expect(await host.podyardOk(["image", "remove", reference])).toBe(`removed ${reference}\n`);
    expect(await host.podyard(["image", "inspect", reference])).toMatchObject({ exitCode: 1, stderr: expect.stringContaining("is not in the cache") });
  });

  test("Ctrl-C ends a pull here and in the host; the next one goes on", async () => {
    await using registry = await startRegistry();
    const name = "images/guest:1";
    await host.podyardOk(["image", "push", `${registry.host}/${name}`, "--disk", sampleDisk]);
    await using proxy = await startFaultProxy(registry.host, [{ kind: "stall", path: /\/blobs\//, afterBytes: 100_000, times: 100 }]);
    const child = spawn(process.execPath, [command, "image", "pull", `${proxy.host}/${name}`], { env: { ...host.environment }, stdio: ["ignore", "ignore", "ignore"] });
    await proxy.stalled;
    child.kill("SIGINT");
    expect(await new Promise((resolve) => child.on("close", resolve))).toBe(130);
    proxy.setFaults([]);
    expect(await host.podyardOk(["image", "pull", `${proxy.host}/${name}`])).toMatch(/pulled in/);
    await host.podyardOk(["image", "remove", `${proxy.host}/${name}`]);
  });

  test("nothing the user's credentials are made of is in logs or state", () => {
    expect(registryLogin).not.toBe("");
    expect(host.output()).not.toContain("from-the-docker-config");
    expect(host.output()).not.toContain(registryLogin);
  });
});

describe("the command line", () => {
  test.each([
    [["vm", "lst"], /unknown command 'lst'/],
    [["vm", "exec"], /missing required argument 'name'/],
    [["run", "--kubelet-port", "70000"], /whole number from 0 to 65535/],
    [["vm", "list", "-o", "xml"], /table, json, yaml/],
    [["pod", "apply", "-f", "/does/not/exist"], /--filename \/does\/not\/exist cannot be read/],
    [["image", "pull", "BAD//reference"], /not an image reference/],
    [["--no-such-option"], /unknown option/],
  ])("%j is a usage error", async (args, message) => {
    expect(await host.podyard(args)).toMatchObject({ exitCode: 2, stdout: "", stderr: expect.stringMatching(message) });
  });

  test("completion completes what there is", async () => {
    const script = await host.podyardOk(["completion", "bash"]);
    const { stdout } = await run("bash", ["-c", `${script}\nCOMP_WORDS=(podyard vm e); COMP_CWORD=2; _podyard; echo "\${COMPREPLY[@]}"; COMP_WORDS=(podyard im); COMP_CWORD=1; _podyard; echo "\${COMPREPLY[@]}"`]);
    expect(stdout).toBe("exec\nimage\n");
  });

  test("every command has help and only real commands are listed", async () => {
    const help = await host.podyardOk(["--help"]);
    for (const name of ["run", "join", "node", "pod", "vm", "image", "demo", "completion"]) {
      expect(help).toMatch(new RegExp(`^ {2}${name}\\b`, "m"));
      expect(await host.podyardOk([name, "--help"])).toMatch(/^Usage: podyard /);
    }
    expect(await host.podyardOk(["--version"])).toBe(`${(JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string }).version}\n`);
  });
});

function run(program: string, args: readonly string[]): Promise<{ readonly stdout: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
    let stdout = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.on("error", reject);
    child.on("close", () => resolve({ stdout }));
  });
}
