/**
 * Certificates from the cluster's signers: submit a CertificateSigningRequest, wait for the answer. The request's name
 * follows from key and subject, so that a host killed while waiting finds its own request again instead of making
 * another. https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/
 */
import { createHash } from "node:crypto";
import type { KeyObject } from "node:crypto";
import { hasCode, PodyardError } from "../contract/errors.ts";
import type { CertificateSigningRequest } from "../contract/kubernetes-api.generated.ts";
import { ApiError } from "./api-error.ts";
import { Backoff } from "./backoff.ts";
import type { KubernetesClient } from "./client.ts";
import { nodesGroup, userPrefix } from "./kubeconfig.ts";
import { certificateSigningRequests } from "./resources.ts";
import { createCertificateRequest } from "./x509.ts";

export type Signer = "kubernetes.io/kube-apiserver-client-kubelet" | "kubernetes.io/kubelet-serving";

export interface CertificateOrder {
  readonly nodeName: string;
  readonly signer: Signer;
  readonly key: KeyObject;
  /** DNS names and IP addresses; for serving certificates only. */
  readonly alternativeNames?: readonly string[];
  /** How long we would like it to be valid; the signer may give less. */
  readonly expirationSeconds?: number;
}

/** Submits the order, or finds it already submitted. Returns the request's name. */
export async function submitOrder(client: KubernetesClient, order: CertificateOrder, signal: AbortSignal): Promise<string> {
  const isServing = order.signer === "kubernetes.io/kubelet-serving";
  const subject = { commonName: `${userPrefix}${order.nodeName}`, organizations: [nodesGroup] };
  const name = orderName(order);
  const request: CertificateSigningRequest = {
    metadata: { name },
    spec: {
      request: Buffer.from(createCertificateRequest(order.key, subject, order.alternativeNames)).toString("base64"),
      signerName: order.signer,
      usages: ["digital signature", isServing ? "server auth" : "client auth"],
      ...(order.expirationSeconds !== undefined && { expirationSeconds: order.expirationSeconds }),
    },
  };
  try {
    await client.create(certificateSigningRequests, {}, request, { signal });
  } catch (error) {
    if (!hasCode(error, "AlreadyExists")) throw error;
  }
  return name;
}

/**
 * Waits for the certificate of a submitted order: PEM. The API server may be away meanwhile. Errors: Forbidden (denied
 * or failed, with the reason), NotFound (removed by the cluster's cleaner after an hour), Cancelled.
 */
export async function awaitCertificate(client: KubernetesClient, name: string, signal: AbortSignal): Promise<string> {
  const backoff = new Backoff({ initialMilliseconds: 500, maximumMilliseconds: 15_000 });
  const fieldSelector = `metadata.name=${name}`;
  while (true) {
    signal.throwIfAborted();
    try {
      const { items, resourceVersion } = await client.list(certificateSigningRequests, {}, { fieldSelector, signal });
      const request = items[0];
      if (request === undefined) throw new PodyardError("NotFound", `certificate request ${name} is gone`);
      const certificate = certificateOf(request);
      if (certificate !== undefined) return certificate;
      for await (const event of client.watch(certificateSigningRequests, {}, { fieldSelector, resourceVersion, timeoutSeconds: 600, signal })) {
        backoff.reset();
        if (event.type === "BOOKMARK") continue;
        if (event.type === "DELETED") throw new PodyardError("NotFound", `certificate request ${name} is gone`);
        const issued = certificateOf(event.object);
        if (issued !== undefined) return issued;
      }
    } catch (error) {
      // An API server that restarts also says Unauthorized and Forbidden for a moment.
      if (!hasCode(error, "Unavailable") && !(error instanceof ApiError)) throw error;
      await backoff.wait(signal).catch(() => undefined);
    }
  }
}

/** The cluster refused this order or forgot it: another one is needed, with another key. */
export function isOrderOver(error: unknown): boolean {
  return hasCode(error, "Forbidden", "NotFound") && !(error instanceof ApiError);
}

/** Approves a request as `kubectl certificate approve` does. Needs an administrator's credential. */
export async function approveOrder(client: KubernetesClient, name: string, signal: AbortSignal): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    const request = await client.get(certificateSigningRequests, { name }, { signal });
    const conditions = request.status?.conditions ?? [];
    if (conditions.some(({ type }) => type === "Approved")) return;
    const approved = { type: "Approved", status: "True", reason: "PodyardJoin", message: "Approved by podyard join with the administrator's credential" };
    try {
      await client.replace(certificateSigningRequests, { name, subresource: "approval" }, { ...request, status: { ...request.status, conditions: [...conditions, approved] } }, { signal });
      return;
    } catch (error) {
      // Conflict: the signer or an approver touched it since.
      if (!hasCode(error, "Conflict") || attempt === 5) throw error;
    }
  }
}

export function orderName(order: CertificateOrder): string {
  const hash = createHash("sha256").update(JSON.stringify([order.signer, order.nodeName, order.alternativeNames ?? []]));
  hash.update(order.key.export({ type: "pkcs8", format: "der" }));
  const kind = order.signer === "kubernetes.io/kubelet-serving" ? "serving" : "client";
  return `podyard-${kind}-${hash.digest("hex").slice(0, 24)}`;
}

function certificateOf(request: CertificateSigningRequest): string | undefined {
  for (const { type, reason, message } of request.status?.conditions ?? []) {
    if (type === "Denied" || type === "Failed") {
      throw new PodyardError("Forbidden", `certificate request ${request.metadata?.name ?? ""} was ${type.toLowerCase()}: ${[reason, message].filter(Boolean).join(": ") || "no reason given"}`);
    }
  }
  const encoded = request.status?.certificate;
  return encoded === undefined || encoded === "" ? undefined : Buffer.from(encoded, "base64").toString("utf8");
}
