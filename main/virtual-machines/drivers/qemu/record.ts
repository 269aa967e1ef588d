/** What DATA_DIR/machines/ID/record.json holds: everything a host that starts later needs to find the machine again. */
import { z } from "zod";

const identitySchema = z.object({ processId: z.number().int().positive(), startTime: z.number() });

export const machineRecordSchema = z.object({
  version: z.literal(1),
  /** `starting` is written before the first process exists, `running` after QEMU answered. */
  state: z.enum(["created", "starting", "running", "stopped"]),
  specification: z.object({
    id: z.string(),
    name: z.string(),
    labels: z.record(z.string(), z.string()),
    cpuCount: z.number(),
    memoryBytes: z.number(),
    image: z.object({
      digest: z.string(),
      diskPath: z.string(),
      diskSize: z.number(),
      auxiliaryPath: z.string().exactOptional(),
      hardwareModel: z.string().exactOptional(),
      machineIdentifier: z.string().exactOptional(),
      operatingSystem: z.enum(["darwin", "linux"]),
      architecture: z.enum(["arm64", "amd64"]).exactOptional(),
    }),
    network: z.object({ id: z.string(), podIP: z.string(), sidecarIP: z.string(), gatewayIP: z.string(), macAddress: z.string(), interfaceName: z.string() }),
    sharedPaths: z.array(z.object({ hostPath: z.string(), readOnly: z.boolean() })),
  }),
  createdAt: z.coerce.date(),
  startedAt: z.coerce.date().optional(),
  /** Process ids mean nothing after a restart of the machine. */
  bootId: z.string().optional(),
  argv: z.array(z.string()).optional(),
  qemu: identitySchema.optional(),
  volumeServer: identitySchema.optional(),
  exit: z
    .object({
      cause: z.enum(["guest-power-off", "guest-reset", "guest-panic", "killed", "volume-server-lost", "failed-to-start"]),
      exitCode: z.number(),
      message: z.string(),
      finishedAt: z.coerce.date(),
    })
    .optional(),
});

export const machineOriginSchema = machineRecordSchema.pick({ specification: true, createdAt: true });

export type MachineRecord = z.infer<typeof machineRecordSchema>;
