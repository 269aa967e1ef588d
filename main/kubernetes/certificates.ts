/**
 * Keeps the node's two certificates valid. The client certificate is renewed before it expires and exchanged in the running
 * clients. The serving certificate of the kubelet server comes from the cluster as well, but nobody approves such requests
 * by default: until an administrator does, a self-signed one serves, and the exact command is shown wherever a user may
 * look. https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/#certificate-rotation
 */
import { createHash, X509Certificate } from "node:crypto";
import type { KeyObject } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { hasCode, messageOf } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import { Backoff, pause } from "./backoff.ts";
import { awaitCertificate, isOrderOver, submitOrder } from "./certificate-requests.ts";
import type { Connection, KubernetesClient } from "./client.ts";
import type { EventRecorder } from "./events.ts";
import { readOptionalFile, writeAtomically } from "../records/atomic-file.ts";
import { nodesGroup, userPrefix, writeClientCertificate } from "./kubeconfig.ts";
import type { NodeCredentials } from "./kubeconfig.ts";
import type { NodeProblem } from "./node-status.ts";
import { alternativeNamesOf, generateKey, issueCertificate, keyFromPem, keyToPem, splitCertificates } from "./x509.ts";

/** PEM texts for the kubelet server's TLS context. */
export interface ServingCertificate {
  readonly certificate: string;
  readonly key: string;
  /** True: the API server will refuse it if it verifies kubelets. */
  readonly isSelfSigned: boolean;
}

export interface NodeCertificatesOptions {
  readonly credentials: NodeCredentials;
  /** Its connection is exchanged here; others through `onClientCertificate`. */
  readonly client: KubernetesClient;
  readonly recorder: EventRecorder;
  readonly logger: Logger;
  /** The node's addresses: the names of the serving certificate. */
  addresses(): readonly string[];
  /** Returns the unsubscriber. */
  onAddressesChanged(listener: () => void): () => void;
  /** For the lease's client. */
  onClientCertificate?(connection: Connection): void;
  /** Called at start, and whenever there is a better one. */
  onServingCertificate(certificate: ServingCertificate): void;
  /** `problems()` changed. */
  onProblem?(): void;
  /** Wished validity of new certificates, at least 600. The cluster's default otherwise. */
  readonly expirationSeconds?: number;
  readonly now?: () => Date;
  /** How long an automatic approver has before a person is asked; 5 s. */
  readonly announceMilliseconds?: number;
  /** How often the clock is looked at; 60 s. */
  readonly checkMilliseconds?: number;
}

export class NodeCertificates {
  readonly #options: NodeCertificatesOptions;
  #connection: NodeCredentials["connection"];
  #problem: NodeProblem | undefined;
  #clientProblem: NodeProblem | undefined;
  #serving: ServingCertificate | undefined;

  constructor(options: NodeCertificatesOptions) {
    this.#options = options;
    this.#connection = options.credentials.connection;
  }

  /** For the Node's conditions. */
  problems(): readonly NodeProblem[] {
    return [this.#clientProblem, this.#problem].filter((problem) => problem !== undefined);
  }

  serving(): ServingCertificate | undefined {
    return this.#serving;
  }

  /** Resolves when there is a serving certificate, self-signed if need be. */
  async start(): Promise<AsyncDisposable> {
    const controller = new AbortController();
    await this.#offerStored();
    const finished = Promise.all([this.#keepClient(controller.signal), this.#keepServing(controller.signal)]);
    return {
      async [Symbol.asyncDispose]() {
        controller.abort();
        await finished;
      },
    };
  }

  async #keepClient(signal: AbortSignal): Promise<void> {
    const { client, credentials, logger, recorder } = this.#options;
    const backoff = new Backoff({ initialMilliseconds: 5000, maximumMilliseconds: 10 * 60_000 });
    let key: KeyObject | undefined;
    while (!signal.aborted) {
      const current = new X509Certificate(this.#connection.certificate);
      if (this.#now() < rotationTime(current)) {
        await pause(this.#options.checkMilliseconds ?? 60_000, signal);
        continue;
      }
      try {
        key ??= generateKey();
        const name = await submitOrder(client, { nodeName: credentials.nodeName, signer: "kubernetes.io/kube-apiserver-client-kubelet", key, ...this.#expiration() }, signal);
        const certificate = await awaitCertificate(client, name, AbortSignal.any([signal, AbortSignal.timeout(15 * 60_000)]));
        const pair = { certificate, key: keyToPem(key) };
        await writeClientCertificate(credentials.directory, pair);
        this.#connection = { ...this.#connection, ...pair };
        client.use(this.#connection);
        this.#options.onClientCertificate?.(this.#connection);
        this.#setClientProblem(undefined);
        logger.info("the node's client certificate was renewed", { validTo: new X509Certificate(certificate).validToDate.toISOString() });
        key = undefined;
        if (this.#now() < rotationTime(new X509Certificate(certificate))) backoff.reset();
        // Due at once: our clock or the signer's is wrong. Not one request after the other.
        else await pause(backoff.next(), signal);
      } catch (error) {
        if (signal.aborted) return;
        if (isOrderOver(error)) key = undefined;
        const message = `the node's client certificate (valid to ${current.validToDate.toISOString()}) cannot be renewed: ${messageOf(error)}`;
        logger.warn(message);
        if (this.#clientProblem === undefined) recorder.record({ kind: "Node", name: credentials.nodeName, uid: credentials.nodeName }, "Warning", "CertificateRenewalFailed", message);
        this.#setClientProblem({ type: "ClientCertificateExpiring", reason: "RenewalFailed", message, fix: "podyard join, if it goes on until then" });
        await pause(backoff.next(), signal);
      }
    }
  }

  async #keepServing(signal: AbortSignal): Promise<void> {
    const backoff = new Backoff({ initialMilliseconds: 5000, maximumMilliseconds: 30 * 60_000 });
    while (!signal.aborted) {
      const names = this.#names();
      const addressesChanged = new AbortController();
      const unsubscribe = this.#options.onAddressesChanged(() => {
        if (this.#names().join() !== names.join()) addressesChanged.abort();
      });
      const either = AbortSignal.any([signal, addressesChanged.signal]);
      try {
        if (names.length === 0 || this.#isCurrent(names)) {
          await pause(this.#options.checkMilliseconds ?? 60_000, either);
          continue;
        }
        if (!this.#covers(names)) this.#offerSelfSigned(names);
        await this.#orderServing(names, either);
        if (this.#isCurrent(names)) backoff.reset();
        else await pause(backoff.next(), either);
      } catch (error) {
        if (either.aborted) continue;
        this.#options.logger.warn("the kubelet's serving certificate cannot be had", { error: messageOf(error) });
        if (isOrderOver(error)) await rm(this.#pendingFile, { force: true });
        if (isOrderOver(error) && hasCode(error, "Forbidden")) this.#setProblem({ type: "ServingCertificatePending", reason: "Refused", message: messageOf(error) });
        await pause(backoff.next(), either);
      } finally {
        unsubscribe();
      }
    }
  }

  /** Gets a certificate from the cluster, however long an administrator takes. */
  async #orderServing(names: readonly string[], signal: AbortSignal): Promise<void> {
    const { client, credentials, logger } = this.#options;
    const key = await this.#pendingKey();
    const name = await submitOrder(client, { nodeName: credentials.nodeName, signer: "kubernetes.io/kubelet-serving", key, alternativeNames: names, ...this.#expiration() }, signal);
    const issued = new AbortController();
    const announcement = this.#announce(name, AbortSignal.any([signal, issued.signal]));
    try {
      const certificate = await awaitCertificate(client, name, signal);
      await writeAtomically(this.#servingFile, `${certificate.trimEnd()}\n${keyToPem(key)}`);
      await rm(this.#pendingFile, { force: true });
      this.#offer({ certificate, key: keyToPem(key), isSelfSigned: false });
      logger.info("the kubelet serves with a certificate of the cluster", { request: name, names: [...names] });
    } finally {
      issued.abort();
      await announcement;
      this.#setProblem(undefined);
    }
  }

  async #announce(name: string, signal: AbortSignal): Promise<void> {
    const { recorder, credentials, logger } = this.#options;
    if (!(await pause(this.#options.announceMilliseconds ?? 5000, signal))) return;
    const fix = `kubectl certificate approve ${name}`;
    const message = `the kubelet's serving certificate waits for approval; until then kubectl logs, exec and port-forward may fail`;
    logger.warn(message, { fix });
    recorder.record({ kind: "Node", name: credentials.nodeName, uid: credentials.nodeName }, "Warning", "ServingCertificatePending", `${message}: ${fix}`);
    this.#setProblem({ type: "ServingCertificatePending", reason: "WaitingForApproval", message, fix });
  }

  async #offerStored(): Promise<void> {
    const stored = await readOptionalFile(this.#servingFile);
    const names = this.#names();
    if (stored !== undefined) {
      try {
        const certificate = splitCertificates(stored).join("");
        const key = keyToPem(keyFromPem(stored.slice(stored.indexOf("-----BEGIN PRIVATE KEY-----"))));
        const parsed = new X509Certificate(certificate);
        const isIssued = parsed.checkPrivateKey(keyFromPem(key)) && splitCertificates(this.#connection.certificateAuthority).some((authority) => parsed.verify(new X509Certificate(authority).publicKey));
        if (isIssued && parsed.validToDate > this.#now()) return this.#offer({ certificate, key, isSelfSigned: false });
      } catch (error) {
        this.#options.logger.warn("the stored serving certificate cannot be read: another is requested", { error: messageOf(error) });
      }
    }
    this.#offerSelfSigned(names);
  }

  #offerSelfSigned(names: readonly string[]): void {
    const key = generateKey();
    const subject = { commonName: `${userPrefix}${this.#options.credentials.nodeName}`, organizations: [nodesGroup] };
    const now = this.#now().getTime();
    const validity = { notBefore: new Date(now - 3600_000), notAfter: new Date(now + 365 * 24 * 3600_000) };
    const certificate = issueCertificate({ subject, key, issuer: { subject, key }, ...validity, usages: ["serverAuth"], alternativeNames: names });
    this.#offer({ certificate, key: keyToPem(key), isSelfSigned: true });
  }

  #offer(serving: ServingCertificate): void {
    this.#serving = serving;
    this.#options.onServingCertificate(serving);
  }

  /** Issued by the cluster, for these names, and not yet to be renewed. */
  #isCurrent(names: readonly string[]): boolean {
    if (this.#serving === undefined || this.#serving.isSelfSigned || !this.#covers(names)) return false;
    return this.#now() < rotationTime(new X509Certificate(this.#serving.certificate));
  }

  #covers(names: readonly string[]): boolean {
    if (this.#serving === undefined) return false;
    const certificate = new X509Certificate(this.#serving.certificate);
    const covered = alternativeNamesOf(certificate);
    return certificate.validToDate > this.#now() && names.every((name) => covered.includes(name) || certificate.checkIP(name) !== undefined);
  }

  async #pendingKey(): Promise<KeyObject> {
    const stored = await readOptionalFile(this.#pendingFile);
    try {
      if (stored !== undefined) return keyFromPem(stored);
    } catch {
      // Unreadable: as good as none.
    }
    const key = generateKey();
    await writeAtomically(this.#pendingFile, keyToPem(key));
    return key;
  }

  #setProblem(problem: NodeProblem | undefined): void {
    if (this.#problem === problem) return;
    this.#problem = problem;
    this.#options.onProblem?.();
  }

  #setClientProblem(problem: NodeProblem | undefined): void {
    if (this.#clientProblem === problem) return;
    this.#clientProblem = problem;
    this.#options.onProblem?.();
  }

  #names(): readonly string[] {
    return [...this.#options.addresses()].sort();
  }

  #now(): Date {
    return this.#options.now?.() ?? new Date();
  }

  #expiration(): { readonly expirationSeconds?: number } {
    return this.#options.expirationSeconds === undefined ? {} : { expirationSeconds: this.#options.expirationSeconds };
  }

  get #servingFile(): string {
    return join(this.#options.credentials.directory, "serving.pem");
  }

  /** The key of a request under way, so that an approval is not lost by a restart. */
  get #pendingFile(): string {
    return join(this.#options.credentials.directory, "serving.key");
  }
}

/** When to renew: after 70 to 90 % of the lifetime. Where in between follows from the certificate, so that a restart does not move it. */
export function rotationTime(certificate: X509Certificate): Date {
  const share = (createHash("sha256").update(certificate.raw).digest()[0] ?? 0) / 255;
  const from = certificate.validFromDate.getTime();
  return new Date(from + (certificate.validToDate.getTime() - from) * (0.7 + 0.2 * share));
}
