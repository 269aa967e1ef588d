/** Images of the engine: find, list, pull as the kubelet's pull policy says. */
import { z } from "zod";
import { PodyardError, hasCode, messageOf } from "../contract/errors.ts";
import type { PullPolicy, RegistryCredentials } from "../contract/image.ts";
import type { EngineImage } from "./container-engine.ts";
import { pathName, type EngineClient } from "./engine-client.ts";
import { engineError, request, requestUnlessGone, statusOf } from "./engine-connection.ts";
import { pullError, readProgress } from "./pull-progress.ts";

const imageSchema = z.object({
  Id: z.string(),
  RepoTags: z.array(z.string()).nullish(),
  RepoDigests: z.array(z.string()).nullish(),
  Size: z.number(),
  Config: z.object({ User: z.string().nullish() }).nullish(),
});

export interface PullRequest {
  readonly policy: PullPolicy;
  readonly credentials: readonly RegistryCredentials[];
  readonly signal?: AbortSignal;
}

export interface PullResult {
  readonly image: EngineImage;
  readonly downloaded: boolean;
  readonly milliseconds: number;
}

export interface EngineImages {
  find(reference: string): Promise<EngineImage | undefined>;
  list(): Promise<readonly EngineImage[]>;
  pull(reference: string, options: PullRequest): Promise<PullResult>;
}

/** A pull under way; it is given up when its last waiter is gone. */
interface SharedPull {
  readonly done: Promise<boolean>;
  readonly abort: AbortController;
  waiters: number;
}

export function createEngineImages(docker: EngineClient): EngineImages {
  const pulls = new Map<string, SharedPull>();

  async function find(reference: string): Promise<EngineImage | undefined> {
    const answer = await requestUnlessGone(`inspect image "${reference}"`, () => docker.ask({ method: "GET", path: `/images/${pathName(reference)}/json` }));
    return answer === undefined ? undefined : engineImage(answer);
  }

  async function list(): Promise<readonly EngineImage[]> {
    const answer = await request("list images", () => docker.ask({ method: "GET", path: "/images/json" }));
    return z.array(z.unknown()).parse(answer).map(engineImage);
  }

  /** True if something was downloaded. */
  async function download(reference: string, credentials: readonly RegistryCredentials[], signal: AbortSignal): Promise<boolean> {
    const action = `pull image "${reference}"`;
    const attempts = credentials.length === 0 ? [undefined] : credentials;
    let failure: PodyardError | undefined;
    for (const attempt of attempts) {
      try {
        return await downloadAs(reference, attempt, action, signal);
      } catch (error) {
        const latest = error instanceof PodyardError ? error : engineError(error, action);
        // Only a refusal is worth another credential; of several refusals the clearest is told.
        if (!hasCode(latest, "Unauthorized", "NotFound")) throw latest;
        if (failure === undefined || latest.code === "Unauthorized") failure = latest;
      }
    }
    throw failure ?? new PodyardError("Internal", `Cannot ${action}`);
  }

  async function downloadAs(reference: string, credential: RegistryCredentials | undefined, action: string, signal: AbortSignal): Promise<boolean> {
    let downloaded = false;
    try {
      const stream = await docker.open({
        method: "POST",
        path: "/images/create",
        query: imageParameters(reference),
        ...(credential !== undefined && { headers: { "X-Registry-Auth": registryAuthentication(reference, credential) } }),
        signal,
      });
      const stop = (): void => void stream.destroy();
      signal.addEventListener("abort", stop, { once: true });
      try {
        await readProgress(stream, action, (status) => {
          if (/^(Downloaded newer image|Pull complete|Download complete)/.test(status)) downloaded = true;
        });
      } finally {
        signal.removeEventListener("abort", stop);
      }
      signal.throwIfAborted();
      return downloaded;
    } catch (error) {
      if (signal.aborted) throw new PodyardError("Cancelled", `Cancelled: ${action}`, { cause: error });
      if (error instanceof PodyardError) throw error;
      throw statusOf(error) === undefined ? engineError(error, action) : pullError(messageOf(engineError(error, "")).replace(/^Cannot : /, ""), action, error);
    }
  }

  function shared(reference: string, credentials: readonly RegistryCredentials[]): SharedPull {
    // Only callers with the same credentials share: a Pod without them must not get a private image by waiting for another.
    const key = JSON.stringify([reference, credentials]);
    const known = pulls.get(key);
    if (known !== undefined) return known;
    const abort = new AbortController();
    const done = download(reference, credentials, abort.signal).finally(() => {
      if (pulls.get(key) === pull) pulls.delete(key);
    });
    done.catch(() => undefined);
    const pull: SharedPull = { done, abort, waiters: 0 };
    abort.signal.addEventListener("abort", () => {
      if (pulls.get(key) === pull) pulls.delete(key);
    });
    pulls.set(key, pull);
    return pull;
  }

  async function pull(reference: string, options: PullRequest): Promise<PullResult> {
    const started = performance.now();
    if (options.signal?.aborted === true) throw new PodyardError("Cancelled", `Cancelled: pull image "${reference}"`);
    const result = (image: EngineImage, downloaded: boolean): PullResult => ({ image, downloaded, milliseconds: Math.round(performance.now() - started) });
    if (options.policy !== "Always") {
      const present = await find(reference);
      if (present !== undefined) return result(present, false);
      if (options.policy === "Never") throw new PodyardError("NotFound", `Container image "${reference}" is not present with pull policy of Never`);
    }
    const downloaded = await waitFor(shared(reference, options.credentials), reference, options.signal);
    const image = await find(reference);
    if (image === undefined) throw new PodyardError("NotFound", `Image "${reference}" is gone right after its pull`);
    return result(image, downloaded);
  }

  return { find, list, pull };
}

async function waitFor(pull: SharedPull, reference: string, signal: AbortSignal | undefined): Promise<boolean> {
  pull.waiters += 1;
  const given = Promise.withResolvers<never>();
  const giveUp = (): void => given.reject(new PodyardError("Cancelled", `Cancelled: pull image "${reference}"`));
  signal?.addEventListener("abort", giveUp, { once: true });
  try {
    return await Promise.race([pull.done, given.promise]);
  } finally {
    signal?.removeEventListener("abort", giveUp);
    pull.waiters -= 1;
    if (pull.waiters === 0) pull.abort.abort();
  }
}

function engineImage(answer: unknown): EngineImage {
  const image = imageSchema.parse(answer);
  return {
    id: image.Id,
    repositoryDigests: (image.RepoDigests ?? []).filter((digest) => !digest.startsWith("<none>")),
    references: (image.RepoTags ?? []).filter((tag) => !tag.startsWith("<none>")),
    sizeBytes: image.Size,
    user: image.Config?.User ?? "",
  };
}

/** Without a tag the API would pull every tag. */
export function imageParameters(reference: string): { fromImage: string; tag?: string } {
  if (reference.includes("@")) return { fromImage: reference };
  const colon = reference.lastIndexOf(":");
  if (colon > reference.lastIndexOf("/")) return { fromImage: reference.slice(0, colon), tag: reference.slice(colon + 1) };
  return { fromImage: reference, tag: "latest" };
}

function registryAuthentication(reference: string, credential: RegistryCredentials): string {
  const first = reference.split("/")[0] ?? "";
  const server = reference.includes("/") && /[.:]|^localhost$/.test(first) ? first : "https://index.docker.io/v1/";
  const authentication = {
    serveraddress: server,
    ...(credential.username === undefined ? {} : { username: credential.username }),
    ...(credential.password === undefined ? {} : { password: credential.password }),
    ...(credential.identityToken === undefined ? {} : { identitytoken: credential.identityToken }),
    ...(credential.registryToken === undefined ? {} : { registrytoken: credential.registryToken }),
  };
  // The engine wants URL-safe base64 with its padding, which Node's "base64url" leaves out.
  return Buffer.from(JSON.stringify(authentication)).toString("base64").replaceAll("+", "-").replaceAll("/", "_");
}
