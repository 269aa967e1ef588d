/**
 * The one contract between the host and its clients (CLI, renderer in Electron or in a browser): calls, byte streams and
 * events, each with its schema. The gateway validates with them, the clients are typed by them; a new feature starts here.
 */
import { z } from "zod";

const date = z.iso.datetime();
const podName = z.object({
  /** `namespace/pod`, or the Pod's name alone where it is unique. */
  name: z.string().min(1),
});
const credentials = z.object({
  username: z.string().optional(),
  password: z.string().optional(),
  identityToken: z.string().optional(),
  registryToken: z.string().optional(),
});
const environment = z.record(z.string(), z.string());

/** A thing that keeps the host from working fully, always with what to do about it. */
export const problemSchema = z.object({ type: z.string(), reason: z.string(), message: z.string(), fix: z.string() });

export const hostInfoSchema = z.object({
  version: z.string(),
  processId: z.number(),
  startedAt: date,
  mode: z.enum(["cluster", "standalone"]),
  nodeName: z.string(),
  dataDirectory: z.string(),
  cacheDirectory: z.string(),
  driver: z.object({
    name: z.string(),
    version: z.string(),
    operatingSystem: z.string(),
    architecture: z.string(),
    accelerator: z.string(),
    acceleratorNote: z.string().optional(),
  }),
  containerEngine: z.object({ version: z.string().optional(), socket: z.string().optional() }),
  maximumMachines: z.number(),
  kubeletPort: z.number().optional(),
  gatewayUrl: z.string().optional(),
  problems: z.array(problemSchema),
});

export const nodeStatusSchema = z.object({
  name: z.string(),
  mode: z.enum(["cluster", "standalone"]),
  ready: z.boolean(),
  reason: z.string(),
  message: z.string(),
  server: z.string().optional(),
  addresses: z.array(z.string()),
  conditions: z.array(z.object({ type: z.string(), status: z.string(), reason: z.string(), message: z.string() })),
  /** Quantities as Kubernetes writes them. */
  capacity: z.record(z.string(), z.string()),
  allocatable: z.record(z.string(), z.string()),
  unschedulable: z.boolean(),
  certificates: z.array(z.object({ name: z.string(), expiresAt: date.optional(), note: z.string().optional() })),
  problems: z.array(problemSchema),
});

export const imageSchema = z.object({
  references: z.array(z.string()),
  digest: z.string(),
  operatingSystem: z.string(),
  architecture: z.string().optional(),
  /** Bytes: logical size of the disk, and what the cache really uses. */
  diskSize: z.number(),
  sizeOnDisk: z.number(),
  pulledAt: date,
  lastUsedAt: date,
  pinned: z.boolean(),
  usedBy: z.array(z.string()),
  diskPath: z.string(),
});

export const machineSchema = z.object({
  /** `namespace/pod`. */
  name: z.string(),
  podUid: z.string(),
  phase: z.string(),
  state: z.string(),
  ready: z.boolean(),
  restartCount: z.number(),
  image: z.string(),
  podIP: z.string().optional(),
  cpuCount: z.number().optional(),
  memoryBytes: z.number().optional(),
  startedAt: date.optional(),
  createdAt: date.optional(),
  message: z.string().optional(),
});

export const podSchema = z.object({
  name: z.string(),
  uid: z.string(),
  phase: z.string(),
  reason: z.string().optional(),
  ready: z.string(),
  restarts: z.number(),
  podIP: z.string().optional(),
  createdAt: date.optional(),
  /** From the API server, or a file or `podyard pod apply` when standalone. */
  origin: z.string(),
  containers: z.array(z.object({ name: z.string(), image: z.string(), ready: z.boolean(), restartCount: z.number(), state: z.string(), message: z.string().optional() })),
});

export const pullProgressSchema = z.object({
  reference: z.string(),
  phase: z.enum(["resolving", "downloading", "verifying", "done"]),
  bytesDone: z.number(),
  bytesTotal: z.number(),
  speed: z.number(),
});

const items = <Item extends z.ZodType>(item: Item) => z.object({ items: z.array(item) });
const none = z.object({});

export const hostApi = {
  calls: {
    "host.info": { request: none, response: hostInfoSchema },
    "host.stop": { request: z.object({ stopPods: z.boolean() }), response: none },
    "node.status": { request: none, response: nodeStatusSchema },
    "node.leave": { request: none, response: z.object({ message: z.string(), command: z.string() }) },
    "image.list": { request: none, response: items(imageSchema) },
    "image.inspect": { request: z.object({ reference: z.string().min(1) }), response: imageSchema },
    "image.pull": {
      request: z.object({ reference: z.string().min(1), policy: z.enum(["Always", "IfNotPresent"]), credentials: z.array(credentials) }),
      response: z.object({ image: imageSchema, downloaded: z.boolean(), milliseconds: z.number() }),
    },
    "image.push": {
      request: z.object({
        reference: z.string().min(1),
        credentials: z.array(credentials),
        /** A cached image to push under another name, or files of this host. */
        source: z.union([
          z.object({ image: z.string().min(1) }),
          z.object({
            diskPath: z.string().min(1),
            auxiliaryPath: z.string().optional(),
            operatingSystem: z.enum(["darwin", "linux"]),
            architecture: z.enum(["arm64", "amd64"]).optional(),
            hardwareModel: z.string().optional(),
            machineIdentifier: z.string().optional(),
            guest: z.object({ user: z.string().optional(), password: z.string().optional(), port: z.number().optional() }).optional(),
          }),
        ]),
      }),
      response: z.object({ digest: z.string() }),
    },
    "image.remove": { request: z.object({ reference: z.string().min(1) }), response: none },
    "vm.list": { request: none, response: items(machineSchema) },
    "vm.stop": { request: podName, response: none },
    "pod.apply": { request: z.object({ manifest: z.string(), source: z.string() }), response: z.object({ items: z.array(z.object({ kind: z.string(), name: z.string(), action: z.enum(["created", "configured", "unchanged"]) })) }) },
    "pod.list": { request: none, response: items(podSchema) },
    "pod.delete": { request: podName.extend({ graceSeconds: z.number().int().min(0).optional() }), response: none },
  },
  streams: {
    "vm.exec": {
      request: podName.extend({
        container: z.string().optional(),
        /** base64 of each argument's bytes. */
        argv: z.array(z.base64()).min(1),
        stdin: z.boolean(),
        terminal: z.object({ columns: z.number(), rows: z.number() }).optional(),
        environment: environment.optional(),
        workingDirectory: z.string().optional(),
      }),
    },
    "vm.attach": { request: podName.extend({ container: z.string().optional(), stdin: z.boolean() }) },
    "vm.console": { request: podName },
    "vm.screen": { request: podName },
    "vm.logs": {
      request: podName.extend({
        container: z.string().optional(),
        follow: z.boolean(),
        previous: z.boolean(),
        timestamps: z.boolean(),
        tailLines: z.number().int().min(0).optional(),
        sinceSeconds: z.number().int().min(1).optional(),
      }),
    },
    "vm.port": { request: podName.extend({ port: z.number().int().min(1).max(65535) }) },
  },
  events: z.discriminatedUnion("kind", [
    /** A Pod changed; the client asks for what it shows. */
    z.object({ kind: z.literal("pod"), uid: z.string(), name: z.string(), phase: z.string(), deleted: z.boolean() }),
    z.object({ kind: z.literal("image"), progress: pullProgressSchema }),
    z.object({ kind: z.literal("images-changed") }),
    z.object({ kind: z.literal("node"), ready: z.boolean(), message: z.string() }),
    z.object({ kind: z.literal("log"), type: z.enum(["Normal", "Warning"]), name: z.string(), reason: z.string(), message: z.string(), time: date }),
  ]),
} as const;

export type HostApi = typeof hostApi;
export type Problem = z.infer<typeof problemSchema>;
export type HostInfo = z.infer<typeof hostInfoSchema>;
export type NodeStatusReport = z.infer<typeof nodeStatusSchema>;
export type ImageReport = z.infer<typeof imageSchema>;
export type MachineReport = z.infer<typeof machineSchema>;
export type PodReport = z.infer<typeof podSchema>;
export type HostEvent = z.infer<typeof hostApi.events>;
