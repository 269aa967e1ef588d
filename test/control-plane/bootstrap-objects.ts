/**
 * What kubeadm adds to a fresh cluster so that nodes can join: bootstrap tokens may request node certificates, these are
 * approved, renewals too, and the cluster's address is published for discovery. Serving certificates have no approver in
 * Kubernetes and stay so here. https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/
 */
import { kubeconfigOf } from "./certificates.ts";

interface Manifest {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace?: string };
}

const group = "rbac.authorization.k8s.io";

export function bootstrapObjects(server: string, certificateAuthority: string): readonly Manifest[] {
  const bind = (name: string, role: string, kind: "Group" | "User", subject: string): Manifest & Record<string, unknown> => ({
    apiVersion: `${group}/v1`,
    kind: "ClusterRoleBinding",
    metadata: { name },
    roleRef: { apiGroup: group, kind: "ClusterRole", name: role },
    subjects: [{ apiGroup: group, kind, name: subject }],
  });
  const discovery = { name: "bootstrap-signer-clusterinfo", namespace: "kube-public" };
  const objects: readonly (Manifest & Record<string, unknown>)[] = [
    bind("apiserver-kubelet-client", "system:kubelet-api-admin", "User", "kube-apiserver-kubelet-client"),
    bind("kubelet-bootstrap", "system:node-bootstrapper", "Group", "system:bootstrappers"),
    bind("node-autoapprove-bootstrap", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", "Group", "system:bootstrappers"),
    bind("node-autoapprove-certificate-rotation", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "Group", "system:nodes"),
    { apiVersion: "v1", kind: "ConfigMap", metadata: { name: "cluster-info", namespace: "kube-public" }, data: { kubeconfig: kubeconfigOf(server, certificateAuthority, "") } },
    {
      apiVersion: `${group}/v1`,
      kind: "Role",
      metadata: discovery,
      rules: [{ apiGroups: [""], resources: ["configmaps"], resourceNames: ["cluster-info"], verbs: ["get"] }],
    },
    {
      apiVersion: `${group}/v1`,
      kind: "RoleBinding",
      metadata: discovery,
      roleRef: { apiGroup: group, kind: "Role", name: discovery.name },
      subjects: [{ apiGroup: group, kind: "User", name: "system:anonymous" }],
    },
  ];
  return objects;
}

/** The Secret of a bootstrap token `id.secret`. */
export function bootstrapTokenSecret(id: string, secret: string, expiresAt: Date): Manifest & Record<string, unknown> {
  return {
    apiVersion: "v1",
    kind: "Secret",
    metadata: { name: `bootstrap-token-${id}`, namespace: "kube-system" },
    type: "bootstrap.kubernetes.io/token",
    stringData: {
      "token-id": id,
      "token-secret": secret,
      expiration: expiresAt.toISOString().replace(/\.\d+Z$/, "Z"),
      "usage-bootstrap-authentication": "true",
      "usage-bootstrap-signing": "true",
      "auth-extra-groups": "system:bootstrappers:test",
    },
  };
}
