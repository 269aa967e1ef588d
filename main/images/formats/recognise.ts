/**
 * Which kind of image a manifest describes. Ordinary container images are told from virtual machines here, before a
 * Pod takes a VM slot.
 */
import { PodyardError } from "../../contract/errors.ts";
import type { RemoteKind } from "../image-store.ts";
import { isAgodaManifest, readAgodaImage } from "./agoda.ts";
import { mediaTypes, refuseHostileTitles, type Manifest } from "./oci.ts";
import { isPodyardManifest, readPodyardImage } from "./podyard.ts";
import type { ReadBlob, VirtualMachineImage } from "./virtual-machine-image.ts";

export function kindOf(manifest: Manifest): RemoteKind["kind"] {
  if (isPodyardManifest(manifest) || isAgodaManifest(manifest)) return "virtual-machine";
  const { mediaType } = manifest.config;
  return mediaType === mediaTypes.imageConfig || mediaType === mediaTypes.dockerConfig ? "container" : "unknown";
}

/** Reads the description of a virtual machine image. Errors: InvalidArgument (not one), Corrupt. */
export async function readVirtualMachineImage(manifest: Manifest, name: string, readBlob: ReadBlob): Promise<VirtualMachineImage> {
  refuseHostileTitles(manifest, name);
  if (isPodyardManifest(manifest)) return readPodyardImage(manifest, name, readBlob);
  if (isAgodaManifest(manifest)) return readAgodaImage(manifest, name, readBlob);
  const found = kindOf(manifest) === "container" ? "a container image" : `an artifact of type "${manifest.artifactType ?? manifest.config.mediaType}"`;
  throw new PodyardError("InvalidArgument", `${name} is ${found}, not a virtual machine image.`, { fix: "The first container of a Pod must name a virtual machine image." });
}
