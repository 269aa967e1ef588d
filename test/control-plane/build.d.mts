export declare const components: readonly string[];
/** The directory with etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kubectl; builds them if needed. */
export declare function buildControlPlane(): string;
