/**
 * Who logs in to a guest. The Pod's Secret wins (annotation `podyard.dev/guest-login-secret: NAME`, a Secret of the Pod's
 * namespace and of any type with the keys `username`, `password`, `ssh-privatekey`, `passphrase`, `port`), then what the
 * image says about itself, then the host's settings (the `VZ_SSH_*` variables of macOS-vz-kubelet).
 */
import { hasCode, PodyardError } from "../contract/errors.ts";
import type { GuestDefaults } from "../contract/image.ts";
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import type { PodObjects } from "../kubernetes/cluster.ts";
import type { GuestLogin } from "../virtual-machines/guest.ts";

export const GUEST_LOGIN_ANNOTATION = "podyard.dev/guest-login-secret";

export interface GuestLoginSettings {
  readonly user?: string;
  readonly password?: string;
  readonly privateKey?: string;
  readonly passphrase?: string;
  readonly port?: number;
  readonly keyExchangeAlgorithms?: readonly string[];
}

/** Errors: InvalidArgument (the Secret is missing or unusable, or nothing names a user), Unavailable. */
export async function guestLogin(pod: Pod, image: GuestDefaults, settings: GuestLoginSettings, objects: Pick<PodObjects, "secret">): Promise<GuestLogin> {
  const secretName = pod.metadata?.annotations?.[GUEST_LOGIN_ANNOTATION];
  const fromSecret = secretName === undefined ? {} : await readSecret(pod.metadata?.namespace ?? "default", secretName, objects);
  // A password or key belongs to the user it comes with; taking them apart would try the host's secret on a stranger's user.
  const source = fromSecret.user !== undefined || fromSecret.password !== undefined || fromSecret.privateKey !== undefined ? fromSecret : image.user !== undefined ? image : settings;
  const user = source.user ?? image.user ?? settings.user;
  if (user === undefined) {
    throw new PodyardError("InvalidArgument", "No user is known for the guest: neither the image nor the host's settings name one.", {
      fix: `Create a Secret with the keys username and password or ssh-privatekey and name it in the Pod's annotation ${GUEST_LOGIN_ANNOTATION}.`,
    });
  }
  const secrets: GuestLoginSettings = source;
  return {
    user,
    ...(secrets.password === undefined ? {} : { password: secrets.password }),
    ...(secrets.privateKey === undefined ? {} : { privateKey: secrets.privateKey }),
    ...(secrets.passphrase === undefined ? {} : { passphrase: secrets.passphrase }),
    port: fromSecret.port ?? image.port ?? settings.port ?? 22,
    ...(settings.keyExchangeAlgorithms === undefined ? {} : { keyExchangeAlgorithms: settings.keyExchangeAlgorithms }),
  };
}

async function readSecret(namespace: string, name: string, objects: Pick<PodObjects, "secret">): Promise<GuestLoginSettings> {
  const secret = await objects.secret(namespace, name).catch((error: unknown) => {
    if (!hasCode(error, "Forbidden")) throw error;
    // The Node authorizer shows a node only what the Pod's spec refers to; an annotation is no reference.
    throw new PodyardError("InvalidArgument", `The node may not read the Secret ${namespace}/${name} that annotation ${GUEST_LOGIN_ANNOTATION} names.`, {
      cause: error,
      fix: "Name it in the Pod's imagePullSecrets, too: that lets the node read it.",
    });
  });
  if (secret === undefined) throw new PodyardError("InvalidArgument", `The Secret ${namespace}/${name} that annotation ${GUEST_LOGIN_ANNOTATION} names does not exist.`);
  const value = (key: string): string | undefined => {
    const encoded = secret.data?.[key];
    return encoded === undefined ? secret.stringData?.[key] : Buffer.from(encoded, "base64").toString("utf8");
  };
  const user = value("username")?.trim();
  const password = value("password");
  const privateKey = value("ssh-privatekey");
  const passphrase = value("passphrase");
  const port = value("port")?.trim();
  if (password === undefined && privateKey === undefined) {
    throw new PodyardError("InvalidArgument", `The Secret ${namespace}/${name} has neither the key password nor ssh-privatekey.`);
  }
  if (port !== undefined && !/^[1-9]\d{0,4}$/.test(port)) throw new PodyardError("InvalidArgument", `The key port of Secret ${namespace}/${name} must be a port number.`);
  return {
    ...(user === undefined ? {} : { user }),
    ...(password === undefined ? {} : { password }),
    ...(privateKey === undefined ? {} : { privateKey }),
    ...(passphrase === undefined ? {} : { passphrase }),
    ...(port === undefined ? {} : { port: Number(port) }),
  };
}
