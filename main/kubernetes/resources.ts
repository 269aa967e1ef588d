/**
 * The kinds of API objects that this host reads and writes, each with its path and its type, so that a request for one
 * cannot be given another's object. https://kubernetes.io/docs/reference/using-api/api-concepts/
 */
import type {
  CertificateSigningRequest,
  ConfigMap,
  Event,
  Eviction,
  Lease,
  Namespace,
  Node,
  ObjectMeta,
  Pod,
  Secret,
  Service,
  ServiceAccount,
  SubjectAccessReview,
  TokenRequest,
  TokenReview,
} from "../contract/kubernetes-api.generated.ts";

export interface ApiObject {
  readonly apiVersion?: string;
  readonly kind?: string;
  readonly metadata?: ObjectMeta;
}

export interface Resource<T extends ApiObject> {
  readonly apiVersion: string;
  readonly kind: string;
  readonly plural: string;
  /** Of the object, where it differs from the path's: subresources. */
  readonly bodyApiVersion?: string;
  /** Never set: carries the object's type. */
  readonly object?: T;
}

/** Which object, or in which namespace; `subresource` as in `pods/status`. */
export interface Scope {
  readonly namespace?: string;
  readonly name?: string;
  readonly subresource?: string;
}

export const pods: Resource<Pod> = { apiVersion: "v1", kind: "Pod", plural: "pods" };
export const evictions: Resource<Eviction> = { apiVersion: "v1", bodyApiVersion: "policy/v1", kind: "Eviction", plural: "pods" };
export const namespaces: Resource<Namespace> = { apiVersion: "v1", kind: "Namespace", plural: "namespaces" };
export const nodes: Resource<Node> = { apiVersion: "v1", kind: "Node", plural: "nodes" };
export const events: Resource<Event> = { apiVersion: "v1", kind: "Event", plural: "events" };
export const secrets: Resource<Secret> = { apiVersion: "v1", kind: "Secret", plural: "secrets" };
export const configMaps: Resource<ConfigMap> = { apiVersion: "v1", kind: "ConfigMap", plural: "configmaps" };
export const services: Resource<Service> = { apiVersion: "v1", kind: "Service", plural: "services" };
export const serviceAccounts: Resource<ServiceAccount> = { apiVersion: "v1", kind: "ServiceAccount", plural: "serviceaccounts" };
export const tokenRequests: Resource<TokenRequest> = { apiVersion: "v1", bodyApiVersion: "authentication.k8s.io/v1", kind: "TokenRequest", plural: "serviceaccounts" };
export const leases: Resource<Lease> = { apiVersion: "coordination.k8s.io/v1", kind: "Lease", plural: "leases" };
export const certificateSigningRequests: Resource<CertificateSigningRequest> = {
  apiVersion: "certificates.k8s.io/v1",
  kind: "CertificateSigningRequest",
  plural: "certificatesigningrequests",
};
export const tokenReviews: Resource<TokenReview> = { apiVersion: "authentication.k8s.io/v1", kind: "TokenReview", plural: "tokenreviews" };
export const subjectAccessReviews: Resource<SubjectAccessReview> = {
  apiVersion: "authorization.k8s.io/v1",
  kind: "SubjectAccessReview",
  plural: "subjectaccessreviews",
};

/** Path on the API server. Every part is escaped: a name comes from an object of the cluster. */
export function pathOf(resource: Resource<ApiObject>, scope: Scope): string {
  const parts = resource.apiVersion.includes("/") ? ["apis", ...resource.apiVersion.split("/")] : ["api", resource.apiVersion];
  if (scope.namespace !== undefined) parts.push("namespaces", scope.namespace);
  parts.push(resource.plural);
  if (scope.name !== undefined) parts.push(scope.name);
  if (scope.subresource !== undefined) parts.push(scope.subresource);
  return `/${parts.map(encodeURIComponent).join("/")}`;
}
