/**
 * /healthz and its checks, in the format of Kubernetes components, and /configz.
 * https://kubernetes.io/docs/reference/using-api/health-checks/
 */
import { messageOf } from "../../contract/errors.ts";
import type { Logger } from "../../contract/logger.ts";
import { HttpError, sendJson, sendText } from "../http.ts";
import type { KubeletRoute } from "../http.ts";

export interface HealthRouteOptions {
  /** Rejects or throws if the loop that keeps Pods in step has been stuck. */
  syncLoop(): void | Promise<void>;
  /** What /configz shows of `KubeletConfiguration`. Must hold no secret. */
  configuration(): Readonly<Record<string, unknown>>;
  readonly logger: Logger;
}

export function healthRoutes({ syncLoop, configuration, logger }: HealthRouteOptions): readonly Omit<KubeletRoute, "subresources">[] {
  const checks: readonly { readonly name: string; check(): void | Promise<void> }[] = [
    { name: "ping", check() {} }, // that this answers is the check
    { name: "log", check: () => logger.debug("healthz") },
    { name: "syncloop", check: syncLoop },
  ];
  const get = (pattern: string, handle: KubeletRoute["handle"]): Omit<KubeletRoute, "subresources"> => ({ methods: ["GET"], pattern, isLongRunning: false, handle });
  const failureOf = async (check: () => void | Promise<void>): Promise<string | undefined> => {
    try {
      await check();
      return undefined;
    } catch (error) {
      return messageOf(error);
    }
  };

  return [
    get("/healthz", async ({ query, response }) => {
      const excluded = query.all("exclude");
      const lines: string[] = [];
      let isHealthy = true;
      for (const { name, check } of checks) {
        const failure = excluded.includes(name) ? undefined : await failureOf(check);
        if (failure !== undefined) {
          isHealthy = false;
          logger.warn("health check failed", { check: name, failure });
        }
        lines.push(excluded.includes(name) ? `[+]${name} excluded: ok` : failure === undefined ? `[+]${name} ok` : `[-]${name} failed: reason withheld`);
      }
      if (!isHealthy) throw new HttpError(500, `${lines.join("\n")}\nhealthz check failed\n`);
      sendText(response, query.has("verbose") ? `${lines.join("\n")}\nhealthz check passed\n` : "ok");
    }),
    ...checks.map(({ name, check }) =>
      get(`/healthz/${name}`, async ({ response }) => {
        const failure = await failureOf(check);
        if (failure !== undefined) throw new HttpError(500, `internal server error: ${failure}\n`);
        sendText(response, "ok");
      }),
    ),
    get("/configz", async ({ response }) => sendJson(response, { kubeletconfig: configuration() })),
  ];
}
