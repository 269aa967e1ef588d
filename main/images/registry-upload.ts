/**
 * Blobs and manifests to a registry: HEAD first, then a cross-repository mount, then one PUT for what fits in memory and
 * PATCHes in order for a large file, continued from the byte the registry has after a failure.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#push
 */
import type { IncomingMessage } from "node:http";
import { createReadStream } from "node:fs";
import type { Readable } from "node:stream";
import type { Digest } from "../contract/image.ts";
import { hasCode, PodyardError } from "../contract/errors.ts";
import { backOff } from "./cancellation.ts";
import { mediaTypes } from "./formats/oci.ts";
import { digestOf, type RegistryEndpoint } from "./registry-client.ts";
import { headerOf } from "./registry-http.ts";

export interface UploadOptions {
  readonly endpoint: RegistryEndpoint;
  readonly repository: string;
  readonly signal?: AbortSignal;
  readonly backOffMilliseconds: number;
}

const attemptsPerUpload = 4;
const partBytes = 64 * 1024 * 1024;

/** Uploads bytes unless the registry has them. True if they went over the wire. Errors: Unauthorized, Unavailable, Cancelled. */
export async function uploadBytes(options: UploadOptions, digest: Digest, bytes: Buffer, mountFrom?: string): Promise<boolean> {
  const { endpoint, repository, signal } = options;
  if (await hasBlob(options, digest)) return false;
  for (let attempt = 1; ; attempt += 1) {
    const query = mountFrom === undefined ? "" : `?mount=${digest}&from=${encodeURIComponent(mountFrom)}`;
    const started = await endpoint.request(`/v2/${repository}/blobs/uploads/${query}`, { method: "POST", headers: { "Content-Length": "0" }, signal });
    await endpoint.expect(started, [201, 202], "a blob upload");
    started.resume();
    if (started.statusCode === 201) return false;
    const path = withDigest(locationOf(started, endpoint), digest);
    try {
      const finished = await endpoint.request(path, { method: "PUT", headers: { "Content-Type": "application/octet-stream" }, body: bytes, signal }, 1);
      await endpoint.expect(finished, [201], `the blob ${digest}`);
      finished.resume();
      return true;
    } catch (error) {
      if (!hasCode(error, "Unavailable") || attempt >= attemptsPerUpload) throw error;
      await backOff(attempt, options.backOffMilliseconds, signal);
    }
  }
}

/** Uploads a file of any size unless the registry has its content. Errors: as {@link uploadBytes}. */
export async function uploadFile(options: UploadOptions, blob: { readonly digest: Digest; readonly size: number }, path: string, onBytes: (count: number) => void): Promise<boolean> {
  const { endpoint, repository, signal } = options;
  if (await hasBlob(options, blob.digest)) return false;
  const started = await endpoint.request(`/v2/${repository}/blobs/uploads/`, { method: "POST", headers: { "Content-Length": "0" }, signal });
  await endpoint.expect(started, [202], "a blob upload");
  started.resume();
  let location = locationOf(started, endpoint);
  let failures = 0;
  for (let done = 0; done < blob.size; ) {
    const end = Math.min(done + partBytes, blob.size);
    const headers = { "Content-Type": "application/octet-stream", "Content-Length": String(end - done), "Content-Range": `${done}-${end - 1}` };
    const start = done;
    const body = (): Readable => createReadStream(path, { start, end: end - 1, highWaterMark: 1024 * 1024 });
    try {
      const part = await endpoint.request(location, { method: "PATCH", headers, body, signal }, 1);
      await endpoint.expect(part, [201, 202, 204], `a part of the blob ${blob.digest}`);
      part.resume();
      location = locationOf(part, endpoint);
      onBytes(end - done);
      done = end;
      failures = 0;
    } catch (error) {
      failures += 1;
      if (!hasCode(error, "Unavailable") || failures >= attemptsPerUpload) throw error;
      await backOff(failures, options.backOffMilliseconds, signal);
      const status = await endpoint.request(location, { method: "GET", signal });
      await endpoint.expect(status, [200, 202, 204], `the upload of the blob ${blob.digest}`);
      status.resume();
      location = locationOf(status, endpoint);
      const last = /-(\d+)$/.exec(headerOf(status.headers, "range") ?? "")?.[1];
      done = last === undefined || last === "0" ? 0 : Number(last) + 1;
    }
  }
  const finished = await endpoint.request(withDigest(location, blob.digest), { method: "PUT", headers: { "Content-Length": "0" }, signal }, 1);
  await endpoint.expect(finished, [201], `the blob ${blob.digest}`);
  finished.resume();
  return true;
}

/** Publishes a manifest under a tag; the registry's idea of its digest must be ours. Errors: as {@link uploadBytes}, Corrupt. */
export async function uploadManifest({ endpoint, repository, signal }: UploadOptions, tag: string, bytes: Buffer): Promise<Digest> {
  const response = await endpoint.request(`/v2/${repository}/manifests/${tag}`, { method: "PUT", headers: { "Content-Type": mediaTypes.manifest }, body: bytes, signal });
  await endpoint.expect(response, [201], `the manifest ${tag}`);
  response.resume();
  const digest = digestOf(bytes);
  const stored = headerOf(response.headers, "docker-content-digest");
  if (stored !== undefined && stored !== digest) throw new PodyardError("Corrupt", `The registry stored the manifest ${tag} as ${stored}, not as ${digest}.`);
  return digest;
}

async function hasBlob({ endpoint, repository, signal }: UploadOptions, digest: Digest): Promise<boolean> {
  const response = await endpoint.request(`/v2/${repository}/blobs/${digest}`, { method: "HEAD", signal });
  await endpoint.expect(response, [200, 404], `the blob ${digest}`);
  response.resume();
  return response.statusCode === 200;
}

/** The path to go on at. Another host than the registry's would get its authorization, so it is refused. */
function locationOf(response: IncomingMessage, endpoint: RegistryEndpoint): string {
  const location = headerOf(response.headers, "location");
  const base = `https://${endpoint.host}`;
  if (location === undefined || !URL.canParse(location, base)) throw new PodyardError("Unavailable", `The registry ${endpoint.host} started an upload without saying where.`);
  const url = new URL(location, base);
  if (url.host !== endpoint.host) throw new PodyardError("Forbidden", `The registry ${endpoint.host} wants the upload sent to ${url.host}.`);
  return `${url.pathname}${url.search}`;
}

function withDigest(path: string, digest: Digest): string {
  return `${path}${path.includes("?") ? "&" : "?"}digest=${encodeURIComponent(digest)}`;
}
