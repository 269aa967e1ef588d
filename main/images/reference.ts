/**
 * Names of images, as the kubelet and Docker read them: `[registry[:port]/]path[:tag][@sha256:…]`. A short name belongs
 * to Docker Hub. A digest wins over a tag beside it, since it says more.
 * Grammar: https://github.com/distribution/reference/blob/main/reference.go
 */
import type { Digest } from "../contract/image.ts";
import { PodyardError } from "../contract/errors.ts";

export interface ImageReference {
  /** Host with its port, `docker.io` for Docker Hub. */
  readonly registry: string;
  readonly repository: string;
  readonly target: { readonly kind: "tag"; readonly tag: string } | { readonly kind: "digest"; readonly digest: Digest };
}

const domainPattern = /^(?:\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*)(?::[0-9]{1,5})?$/;
const componentPattern = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const tagPattern = /^\w[\w.-]{0,127}$/;
const digestPattern = /^sha256:[0-9a-f]{64}$/;

/** True for `sha256:` and 64 lower-case hexadecimal digits, the only algorithm that is accepted. */
export function isDigest(text: string): text is Digest {
  return digestPattern.test(text);
}

/** Parses and normalises a reference. Errors: InvalidArgument. */
export function parseReference(text: string): ImageReference {
  const at = text.indexOf("@");
  const digest = at === -1 ? undefined : text.slice(at + 1);
  if (digest !== undefined && !isDigest(digest)) throw invalid(text, `its digest "${digest}" is not "sha256:" and 64 lower-case hexadecimal digits`);
  const named = at === -1 ? text : text.slice(0, at);
  const colon = named.lastIndexOf(":");
  const tag = colon > named.lastIndexOf("/") ? named.slice(colon + 1) : undefined;
  if (tag !== undefined && !tagPattern.test(tag)) throw invalid(text, `its tag "${tag}" is not 1 to 128 letters, digits, ".", "_" or "-"`);
  const { registry, repository } = splitName(text, tag === undefined ? named : named.slice(0, colon));
  return { registry, repository, target: digest === undefined ? { kind: "tag", tag: tag ?? "latest" } : { kind: "digest", digest } };
}

/** The one spelling under which records are kept: `registry/repository:tag` or `registry/repository@sha256:…`. */
export function formatReference(reference: ImageReference): string {
  const { registry, repository, target } = reference;
  return target.kind === "tag" ? `${registry}/${repository}:${target.tag}` : `${registry}/${repository}@${target.digest}`;
}

/** Host of the registry's API; Docker Hub's differs from its name. */
export function apiHostOf(registry: string): string {
  return registry === "docker.io" ? "registry-1.docker.io" : registry;
}

/** What stands behind `/manifests/` in a URL. */
export function targetOf(reference: ImageReference): string {
  return reference.target.kind === "tag" ? reference.target.tag : reference.target.digest;
}

function splitName(text: string, name: string): { readonly registry: string; readonly repository: string } {
  const slash = name.indexOf("/");
  const first = slash === -1 ? "" : name.slice(0, slash);
  const hasDomain = slash !== -1 && (/[.:A-Z]/.test(first) || first === "localhost");
  const registry = !hasDomain || first === "index.docker.io" ? "docker.io" : first.toLowerCase();
  const path = hasDomain ? name.slice(slash + 1) : name;
  if (!domainPattern.test(registry)) throw invalid(text, `"${first}" is not a host name with an optional port`);
  const port = /:([0-9]+)$/.exec(registry)?.[1];
  if (port !== undefined && (Number(port) < 1 || Number(port) > 65_535)) throw invalid(text, `its port ${port} is not between 1 and 65535`);
  const repository = registry === "docker.io" && !path.includes("/") ? `library/${path}` : path;
  if (path === "") throw invalid(text, "it names no repository");
  for (const component of path.split("/")) {
    if (!componentPattern.test(component)) throw invalid(text, `"${component}" is not a repository name (lower-case letters, digits and single ".", "_", "-" between them)`);
  }
  if (registry.length + repository.length > 254) throw invalid(text, "its name is longer than 255 characters");
  return { registry, repository };
}

function invalid(text: string, why: string): PodyardError {
  return new PodyardError("InvalidArgument", `"${text.slice(0, 300)}" is not an image reference: ${why}.`, { fix: "Write registry/repository:tag or registry/repository@sha256:digest." });
}
