/**
 * Who calls the kubelet server: first a client certificate of the cluster's client CA (user = CN, groups = O), then a bearer
 * token. Anonymous requests are refused. TLS only asks for a certificate, so that token users can connect; whether its
 * chain is good is OpenSSL's verdict, which Node reports as `authorized`.
 * https://kubernetes.io/docs/reference/access-authn-authz/kubelet-authn-authz/
 */
import type { IncomingMessage } from "node:http";
import { TLSSocket } from "node:tls";
import { messageOf } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import type { Authenticator, Identity } from "./authorization.ts";

const authenticatedGroup = "system:authenticated";

/** Undefined = 401. A token that cannot be reviewed now is not valid now. */
export async function authenticateRequest(request: IncomingMessage, authenticator: Authenticator, logger: Logger): Promise<Identity | undefined> {
  const identity = certificateIdentity(request) ?? (await tokenIdentity(request, authenticator, logger));
  if (identity === undefined || identity.groups.includes(authenticatedGroup)) return identity;
  return { ...identity, groups: [...identity.groups, authenticatedGroup] };
}

function certificateIdentity(request: IncomingMessage): Identity | undefined {
  const socket = request.socket;
  if (!(socket instanceof TLSSocket) || !socket.authorized) return undefined;
  const certificate = socket.getPeerCertificate();
  // The chain was checked at the handshake; a connection may outlive its certificate.
  if (certificate.subject === undefined || Date.parse(certificate.valid_to) < Date.now()) return undefined;
  const user = listOf(certificate.subject.CN).at(-1) ?? "";
  return user === "" ? undefined : { user, groups: listOf(certificate.subject.O) };
}

async function tokenIdentity(request: IncomingMessage, authenticator: Authenticator, logger: Logger): Promise<Identity | undefined> {
  const [scheme, token, ...rest] = (request.headers.authorization ?? "").trim().split(/ +/);
  if (scheme?.toLowerCase() !== "bearer" || token === undefined || token === "" || rest.length > 0) return undefined;
  try {
    return await authenticator.reviewToken(token);
  } catch (error) {
    logger.warn("a bearer token could not be reviewed", { error: messageOf(error) });
    return undefined;
  }
}

/** Node gives a repeated attribute as a list. */
function listOf(attribute: string | readonly string[] | undefined): readonly string[] {
  if (attribute === undefined) return [];
  return typeof attribute === "string" ? [attribute] : attribute;
}
