/**
 * Who may call the kubelet server: the interface. In a cluster it is TokenReview and SubjectAccessReview
 * (kubernetes/ implements both by shape, without importing this); standalone there is no kubelet server at all.
 */
export interface Identity {
  readonly user: string;
  readonly groups: readonly string[];
  readonly uid?: string;
  readonly extra?: Readonly<Record<string, readonly string[]>>;
}

export interface Authenticator {
  /** Undefined = the token is not valid. Errors: Unavailable. */
  reviewToken(token: string): Promise<Identity | undefined>;
}

export interface Authorizer {
  /** May `identity` do `verb` on `nodes/<subresource>` of this node? Errors: Unavailable. */
  authorize(identity: Identity, verb: string, subresource: string): Promise<boolean>;
}
