/** Pods and what they print: /pods, /runningpods/, /containerLogs and the legacy /run. */
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { Pod } from "../../contract/kubernetes-api.generated.ts";
import type { PodRuntime } from "../../pods/pod-runtime.ts";
import { HttpError, sendJson } from "../http.ts";
import type { KubeletRoute, RequestContext } from "../http.ts";
import { parseLogOptions } from "../log-options.ts";
import { findContainer, findPod, podKeyOf } from "./pod-lookup.ts";

/** What /run returns at most, in bytes, as the CRI's ExecSync does. */
const maximumRunOutput = 16 * 1024 * 1024;

export function podRoutes(pods: PodRuntime): readonly Omit<KubeletRoute, "subresources">[] {
  return [
    { methods: ["GET"], pattern: "/pods", isLongRunning: false, handle: async ({ response }) => sendJson(response, podList(pods.list())) },
    { methods: ["GET"], pattern: "/runningpods/", isLongRunning: false, handle: async ({ response }) => sendJson(response, podList(await pods.running())) },
    {
      methods: ["GET"],
      pattern: "/runningpods",
      isLongRunning: false,
      handle: async () => {
        throw new HttpError(301, "Moved Permanently", { Location: "/runningpods/" });
      },
    },
    { methods: ["GET"], pattern: "/containerLogs/{namespace}/{pod}/{container}", isLongRunning: true, handle: (context) => sendLogs(pods, context) },
    { methods: ["POST"], pattern: "/run/{namespace}/{pod}/{container}", isLongRunning: true, handle: (context) => runCommand(pods, context) },
    { methods: ["POST"], pattern: "/run/{namespace}/{pod}/{uid}/{container}", isLongRunning: true, handle: (context) => runCommand(pods, context) },
  ];
}

function podList(pods: readonly Pod[]): object {
  return { kind: "PodList", apiVersion: "v1", metadata: {}, items: pods };
}

async function sendLogs(pods: PodRuntime, { query, parameters, response, signal }: RequestContext): Promise<void> {
  const options = parseLogOptions(query, new Date());
  const key = podKeyOf(parameters);
  const container = parameters["container"] ?? "";
  const pod = findPod(pods, key);
  if (pod === undefined) throw new HttpError(404, `pod "${key.name}" does not exist`);
  if (findContainer(pod, container) === undefined) throw new HttpError(404, `container "${container}" not found in pod "${key.name}"`);

  const log = await pods.logs(key, container, { ...options, signal });
  response.writeHead(200, { "Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff" });
  response.flushHeaders(); // kubectl logs -f waits for them, there may be no line for long
  await pipeline(log, response);
}

async function runCommand(pods: PodRuntime, { query, parameters, response, signal }: RequestContext): Promise<void> {
  const key = podKeyOf(parameters);
  const container = parameters["container"] ?? "";
  const pod = findPod(pods, key);
  if (pod === undefined) throw new HttpError(404, "pod does not exist");
  if (findContainer(pod, container) === undefined) throw new HttpError(404, `container not found ("${container}")`);
  const argv = splitBytes(query.bytes("cmd")[0] ?? Buffer.alloc(0));

  const session = await pods.exec(key, container, { argv, stdin: false, signal });
  try {
    const chunks: Buffer[] = [];
    let length = 0;
    const collect = (source: Readable | undefined): void => {
      source?.on("error", () => undefined);
      source?.on("data", (chunk: Buffer) => {
        if (length >= maximumRunOutput) return;
        chunks.push(chunk);
        length += chunk.length;
      });
    };
    collect(session.stdout);
    collect(session.stderr);
    const { exitCode } = await session.exit;
    const output = Buffer.concat(chunks).subarray(0, maximumRunOutput);
    if (exitCode !== 0) throw new HttpError(500, `command '${argv.join(" ")}' exited with ${exitCode}: ${output.toString("utf8")}`);
    response.writeHead(200, { "Content-Type": "application/octet-stream", "Content-Length": output.length, "X-Content-Type-Options": "nosniff" });
    response.end(output);
  } finally {
    await session[Symbol.asyncDispose]();
  }
}

/** At every space, as the kubelet does: two spaces make an empty argument. */
function splitBytes(text: Buffer): readonly Buffer[] {
  const parts: Buffer[] = [];
  let start = 0;
  for (let end = text.indexOf(0x20); end !== -1; end = text.indexOf(0x20, start)) {
    parts.push(text.subarray(start, end));
    start = end + 1;
  }
  parts.push(text.subarray(start));
  return parts;
}
