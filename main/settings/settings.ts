/**
 * The host's settings: one schema for the app (electron-store), the headless host (`DATA_DIR/settings.json`), a
 * `--config` file and flags. Unknown keys are errors, so that a typing mistake is not silently without effect.
 */
import { z } from "zod";

/** A Kubernetes quantity such as `8Gi`, `500m` or `20G`; what it may mean is checked where it is used. */
const quantity = z.string().regex(/^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$/, "expected a Kubernetes quantity such as 8Gi, 500m or 2");
const port = z.number().int().min(0).max(65535);
const size = z.strictObject({ cpu: quantity, memory: quantity });

export const taintSchema = z.union([
  z.literal("none"),
  z.string().regex(/^[^=:\s]+(=[^=:\s]*)?:(NoSchedule|NoExecute|PreferNoSchedule)$/, "expected key=value:Effect with Effect NoSchedule, NoExecute or PreferNoSchedule, or none"),
]);

export const settingsSchema = z.strictObject({
  nodeName: z.string().regex(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/, "expected lower-case letters, digits, - and . (RFC 1123)").max(63).optional(),
  driver: z.enum(["auto", "virtualization", "qemu"]).default("auto"),
  /** Port of the kubelet API; 0 = any free one. */
  kubeletPort: port.default(10250),
  kubeletAddress: z.string().default("0.0.0.0"),
  /** Loopback TCP port of the gateway; absent = unix socket only; 0 = any free one. */
  gatewayPort: port.optional(),
  /** A folder of manifests to run without a cluster. */
  manifests: z.string().optional(),
  maximumMachines: z.number().int().min(1).max(100).optional(),
  nodeLabels: z.record(z.string(), z.string()).default({}),
  taint: taintSchema.default("virtual-kubelet.io/provider=macos-vz:NoSchedule"),
  providerId: z.string().optional(),
  /** Kept back for the host: capacity minus this is allocatable. */
  hostReserve: size.default({ cpu: "500m", memory: "1Gi" }),
  /** Size of a virtual machine whose Pod asks for nothing. */
  defaultSize: z.strictObject({ darwin: size.default({ cpu: "4", memory: "8Gi" }), linux: size.default({ cpu: "1", memory: "1Gi" }) }).default({
    darwin: { cpu: "4", memory: "8Gi" },
    linux: { cpu: "1", memory: "1Gi" },
  }),
  clusterDNS: z.strictObject({ servers: z.array(z.union([z.ipv4(), z.ipv6()])).min(1), domain: z.string().default("cluster.local") }).optional(),
  /** Address range of the Pods' networks on Linux; `auto` takes a free one. */
  podSubnet: z.union([z.literal("auto"), z.cidrv4()]).default("auto"),
  guest: z
    .strictObject({
      user: z.string().optional(),
      password: z.string().optional(),
      privateKeyPath: z.string().optional(),
      passphrase: z.string().optional(),
      port: port.optional(),
      keyExchangeAlgorithms: z.array(z.string()).optional(),
      /** Seconds until a guest that does not answer is a failed start. */
      readinessTimeoutSeconds: z.number().int().min(1).default(300),
      postStartTimeoutSeconds: z.number().int().min(1).default(600),
    })
    .default({ readinessTimeoutSeconds: 300, postStartTimeoutSeconds: 600 }),
  /** `unix:///…` or a path; absent = $DOCKER_HOST, the usual socket, or an engine of our own. */
  dockerHost: z.string().optional(),
  registries: z
    .record(z.string(), z.strictObject({ insecure: z.boolean().optional(), mirrors: z.array(z.string()).optional(), certificateAuthority: z.string().optional() }))
    .default({}),
  /** Authorities that may sign client certificates for the kubelet API; absent = the cluster's CA. */
  clientCertificateAuthority: z.string().optional(),
});

export type Settings = z.infer<typeof settingsSchema>;
