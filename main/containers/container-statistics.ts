/**
 * Counters of a running container, from one reading (no interval is waited for). The working set is the kubelet's: usage
 * without the inactive file cache, which cgroup v1 and v2 name differently.
 */
import { z } from "zod";
import type { ContainerStatistics } from "./container-engine.ts";

const statisticsSchema = z.object({
  read: z.string(),
  cpu_stats: z.object({ cpu_usage: z.object({ total_usage: z.number() }) }),
  memory_stats: z.object({ usage: z.number().optional(), stats: z.record(z.string(), z.number()).optional() }),
});

/** Undefined if the container does not run: then the engine answers with empty objects. */
export function containerStatistics(answer: unknown): ContainerStatistics | undefined {
  const parsed = statisticsSchema.safeParse(answer);
  if (!parsed.success || parsed.data.memory_stats.usage === undefined || parsed.data.read.startsWith("0001-")) return undefined;
  const { usage, stats } = parsed.data.memory_stats;
  const inactive = stats?.["total_inactive_file"] ?? stats?.["inactive_file"] ?? 0;
  return {
    time: new Date(parsed.data.read),
    cpuNanoseconds: parsed.data.cpu_stats.cpu_usage.total_usage,
    memoryUsageBytes: usage,
    memoryWorkingSetBytes: Math.max(0, usage - inactive),
  };
}
