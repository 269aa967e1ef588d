/**
 * Who calls the kubelet server, and may they: asked from the cluster and remembered for a while, as the kubelet does
 * (tokens 2 minutes, yes 5 minutes, no 30 seconds). Tokens are remembered by hash only.
 * https://kubernetes.io/docs/reference/access-authn-authz/kubelet-authn-authz/
 */
import { createHash } from "node:crypto";
import type { KubernetesClient } from "./client.ts";
import { subjectAccessReviews, tokenReviews } from "./resources.ts";

/** Shape of kubelet/authorization.ts. */
export interface ReviewedIdentity {
  readonly user: string;
  readonly groups: readonly string[];
  readonly uid?: string;
  readonly extra?: Readonly<Record<string, readonly string[]>>;
}

export interface ReviewOptions {
  readonly client: KubernetesClient;
  readonly now?: () => number;
}

const tokenMilliseconds = 2 * 60_000;
const allowedMilliseconds = 5 * 60_000;
const deniedMilliseconds = 30_000;
const maximumEntries = 1024;

export class TokenReviewer {
  readonly #client: KubernetesClient;
  readonly #cache: ExpiringCache<ReviewedIdentity | undefined>;

  constructor(options: ReviewOptions) {
    this.#client = options.client;
    this.#cache = new ExpiringCache(options.now ?? Date.now);
  }

  /** Undefined = the token is not valid. Errors: Unavailable, Forbidden (this node may not ask). */
  async reviewToken(token: string): Promise<ReviewedIdentity | undefined> {
    const key = createHash("sha256").update(token).digest("base64");
    return this.#cache.get(key, () => tokenMilliseconds, () => this.#review(token));
  }

  async #review(token: string): Promise<ReviewedIdentity | undefined> {
    const { status } = await this.#client.create(tokenReviews, {}, { spec: { token } });
    const { username, groups, uid, extra } = status?.user ?? {};
    if (status?.authenticated !== true || username === undefined || username === "") return undefined;
    return { user: username, groups: groups ?? [], ...(uid !== undefined && uid !== "" && { uid }), ...(extra !== undefined && { extra }) };
  }
}

export class NodeAccessReviewer {
  readonly #client: KubernetesClient;
  readonly #nodeName: string;
  readonly #cache: ExpiringCache<boolean>;

  constructor(options: ReviewOptions & { readonly nodeName: string }) {
    this.#client = options.client;
    this.#nodeName = options.nodeName;
    this.#cache = new ExpiringCache(options.now ?? Date.now);
  }

  /** May `identity` do `verb` on `nodes/<subresource>` of this node? Errors: Unavailable, Forbidden. */
  async authorize(identity: ReviewedIdentity, verb: string, subresource: string): Promise<boolean> {
    const extra = Object.entries(identity.extra ?? {}).sort(([a], [b]) => a.localeCompare(b));
    const key = JSON.stringify([identity.user, identity.uid, [...identity.groups].sort(), extra, verb, subresource]);
    return this.#cache.get(key, (isAllowed) => (isAllowed ? allowedMilliseconds : deniedMilliseconds), () => this.#review(identity, verb, subresource));
  }

  async #review(identity: ReviewedIdentity, verb: string, subresource: string): Promise<boolean> {
    const { user, groups, uid, extra } = identity;
    const resourceAttributes = { verb, version: "v1", group: "", resource: "nodes", subresource, name: this.#nodeName };
    const { status } = await this.#client.create(subjectAccessReviews, {}, { spec: { user, groups, ...(uid !== undefined && { uid }), ...(extra !== undefined && { extra }), resourceAttributes } });
    return status?.allowed === true && status.denied !== true;
  }
}

/** Answers with their lifetimes; the same question asked twice at a time is sent once. Failures are not remembered. */
class ExpiringCache<T> {
  readonly #now: () => number;
  readonly #entries = new Map<string, { readonly value: T; readonly until: number }>();
  readonly #pending = new Map<string, Promise<T>>();

  constructor(now: () => number) {
    this.#now = now;
  }

  async get(key: string, lifetime: (value: T) => number, ask: () => Promise<T>): Promise<T> {
    const known = this.#entries.get(key);
    if (known !== undefined && known.until > this.#now()) return known.value;
    const pending = this.#pending.get(key) ?? this.#ask(key, lifetime, ask);
    return pending;
  }

  #ask(key: string, lifetime: (value: T) => number, ask: () => Promise<T>): Promise<T> {
    const pending = ask()
      .then((value) => {
        this.#entries.delete(key);
        this.#entries.set(key, { value, until: this.#now() + lifetime(value) });
        const oldest = this.#entries.keys().next();
        if (this.#entries.size > maximumEntries && oldest.done !== true) this.#entries.delete(oldest.value);
        return value;
      })
      .finally(() => this.#pending.delete(key));
    this.#pending.set(key, pending);
    return pending;
  }
}
