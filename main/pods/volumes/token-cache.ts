/**
 * Service account tokens of projected volumes: fetched once, renewed at 80 % of their life or after 24 hours, and kept while
 * the API server is away and they are valid. After a restart of the host the token in the volume is taken up again, so that
 * an adopted Pod needs no API server. https://kubernetes.io/docs/concepts/storage/projected-volumes/#serviceaccounttoken
 */
import { z } from "zod";
import type { Pod } from "../../contract/kubernetes-api.generated.ts";
import type { Logger } from "../../contract/logger.ts";
import type { PodObjects } from "../../kubernetes/cluster.ts";

export interface TokenRequest {
  readonly volumeName: string;
  readonly path: string;
  readonly audience: string | undefined;
  readonly expirationSeconds: number;
}

export interface TokenCache {
  /** A valid token. Errors: those of PodObjects.token, if there is no valid one left. */
  token(pod: Pod, request: TokenRequest): Promise<string>;
  /** When the first token of the Pod is due. */
  nextRefresh(podUid: string): Date | undefined;
  forget(podUid: string): void;
}

interface KnownToken {
  readonly token: string;
  readonly expiresAt: number;
  readonly refreshAt: number;
}

const maximumAge = 24 * 60 * 60 * 1000;
const retryAfterFailure = 30 * 1000;
const claims = z.object({ exp: z.number(), iat: z.number().optional() });

export function createTokenCache(options: {
  readonly objects: Pick<PodObjects, "token">;
  readonly logger: Logger;
  /** The token that an earlier run of the host wrote, if any. */
  readonly stored: (podUid: string, request: TokenRequest) => Promise<string | undefined>;
  readonly now: () => number;
}): TokenCache {
  const { objects, logger, stored, now } = options;
  const pods = new Map<string, Map<string, KnownToken>>();

  return {
    async token(pod, request) {
      const uid = pod.metadata?.uid ?? "";
      const known = pods.get(uid) ?? new Map<string, KnownToken>();
      pods.set(uid, known);
      const key = JSON.stringify([request.volumeName, request.path]);
      const current = known.get(key) ?? restore(await stored(uid, request), request.expirationSeconds);
      if (current !== undefined && now() < current.refreshAt) {
        known.set(key, current);
        return current.token;
      }
      try {
        const { token, expiresAt } = await objects.token(pod, request.audience, request.expirationSeconds);
        known.set(key, timed(token, expiresAt.getTime(), request.expirationSeconds));
        return token;
      } catch (error) {
        if (current === undefined || now() >= current.expiresAt) throw error;
        logger.warn("a service account token could not be renewed; the present one stays in use", { pod: uid, error: String(error) });
        known.set(key, { ...current, refreshAt: now() + retryAfterFailure });
        return current.token;
      }
    },
    nextRefresh(podUid) {
      const due = [...(pods.get(podUid)?.values() ?? [])].map(({ refreshAt }) => refreshAt);
      return due.length === 0 ? undefined : new Date(Math.min(...due));
    },
    forget(podUid) {
      pods.delete(podUid);
    },
  };
}

/** Due after 80 % of what was asked for, or a day. The server may grant less than asked, or more: issued = expiry − asked, as the kubelet has it. */
function timed(token: string, expiresAt: number, expirationSeconds: number): KnownToken {
  const life = expirationSeconds * 1000;
  return { token, expiresAt, refreshAt: Math.min(expiresAt - life + maximumAge, expiresAt - life * 0.2) };
}

function restore(token: string | undefined, expirationSeconds: number): KnownToken | undefined {
  try {
    const { exp } = claims.parse(JSON.parse(Buffer.from(token?.split(".")[1] ?? "", "base64url").toString("utf8")));
    return token === undefined ? undefined : timed(token, exp * 1000, expirationSeconds);
  } catch {
    return undefined;
  }
}
