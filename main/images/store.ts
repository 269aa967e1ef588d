/**
 * The image store: references, policy, access, sharing of downloads, use and garbage. The bytes themselves are pull.ts's
 * business and the layout on disk image-records.ts's. Policies are the kubelet's: IfNotPresent does not ask the registry
 * about a tag it has, Always asks but fetches nothing it has, Never fetches nothing.
 */
import { arch, platform } from "node:os";
import { join } from "node:path";
import type { Digest, PullProgress, RegistryCredentials } from "../contract/image.ts";
import { hasCode, PodyardError } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import { cancelled, throwIfCancelled } from "./cancellation.ts";
import { cloneFile, type CloneFile } from "./base-image.ts";
import { Flight } from "./flight.ts";
import { readVirtualMachineImage } from "./formats/recognise.ts";
import type { VirtualMachineImage } from "./formats/virtual-machine-image.ts";
import { allocatedBytes, ImageRecords, type ImageState, type ReferenceRecord } from "./image-records.ts";
import { importDisk } from "./import-disk.ts";
import type { CachedImage, ImageStore, PullOptions, PushSource, RemoteKind } from "./image-store.ts";
import { findBases, findLocalSources, findMountableChunks } from "./local-sources.ts";
import { PieceWorkers } from "./piece-workers.ts";
import { ProgressMeter } from "./progress-meter.ts";
import { fileSystemSpace, pullImage } from "./pull.ts";
import { pushAgodaImage, pushPodyardImage } from "./push.ts";
import { formatReference, isDigest, parseReference, type ImageReference } from "./reference.ts";
import { persistentFingerprintOf } from "./registry-authentication.ts";
import { RegistryClient, type RegistryClientOptions, type RegistrySession } from "./registry-client.ts";
import { classifyManifest, requirePlatform, resolveManifest, type AcceptedPlatform, type ResolvedManifest } from "./resolve-manifest.ts";

export interface ImageStoreOptions {
  /** Created if missing, 0700. May be macOS-vz-kubelet's cache directory. */
  readonly cacheDirectory: string;
  readonly logger: Logger;
  /** Names the host among those that share the cache: one releases no other's images. Default: it is alone. */
  readonly host?: string;
  /** What this host runs. Default: its own platform; on macOS also linux/arm64. */
  readonly platforms?: readonly AcceptedPlatform[];
  /** `blobs` directories of macOS-vz-kubelet. Default: the one in the cache directory. */
  readonly importDirectories?: readonly string[];
  readonly registry?: Omit<RegistryClientOptions, "logger">;
  /** Bytes that a pull leaves free. Default 1 GiB. */
  readonly reserveBytes?: number;
  /** Garbage collection spares images used within so many milliseconds, which a Pod may be about to start from. Default 2 min. */
  readonly minimumAgeMilliseconds?: number;
  /** Default: threads + 4. */
  readonly parallelDownloads?: number;
  /** Default: the processors, at least 2 and at most 8. */
  readonly threads?: number;
  /** Free and total bytes of the cache's file system; given by tests. */
  readonly fileSystemSpace?: typeof fileSystemSpace;
  /** Default: clonefile or FICLONE; given by tests on file systems without them. */
  readonly cloneFile?: CloneFile;
}

export interface PushOptions extends Omit<PullOptions, "policy"> {
  /** Default podyard; agoda is what macOS-vz-kubelet reads. */
  readonly format?: "podyard" | "agoda";
}

/** An access check or a look at a manifest must not hold a Pod up while the registry does not answer. */
const quickAnswerMilliseconds = 5000;

/** Opens the store; disposing of it cancels what is under way and ends its threads. Errors: those of the file system. */
export async function createImageStore(options: ImageStoreOptions): Promise<LocalImageStore> {
  const records = new ImageRecords(options.cacheDirectory, options.logger);
  await records.open();
  return new LocalImageStore(options, records);
}

export class LocalImageStore implements ImageStore, AsyncDisposable {
  readonly #options: ImageStoreOptions;
  readonly #logger: Logger;
  readonly #records: ImageRecords;
  readonly #client: RegistryClient;
  readonly #workers: PieceWorkers;
  readonly #platforms: readonly AcceptedPlatform[];
  readonly #flights = new Map<Digest, Flight<PullProgress>>();
  #exclusive: Promise<unknown> = Promise.resolve();

  constructor(options: ImageStoreOptions, records: ImageRecords) {
    this.#options = options;
    this.#logger = options.logger;
    this.#records = records;
    this.#client = new RegistryClient({ ...options.registry, logger: options.logger });
    this.#workers = new PieceWorkers(options.threads);
    this.#platforms = options.platforms ?? hostPlatforms();
  }

  async list(): Promise<readonly CachedImage[]> {
    const [digests, references] = await Promise.all([this.#records.digests(), this.#records.references()]);
    const states = await Promise.all(digests.map((digest) => this.#records.readState(digest)));
    return states.filter((state) => state !== undefined).map((state) => this.#toCachedImage(state, references));
  }

  async find(reference: string): Promise<CachedImage | undefined> {
    const digest = isDigest(reference) ? reference : (await this.#findRecord(parseReference(reference)))?.digest;
    return digest === undefined ? undefined : this.#read(digest);
  }

  async classify(reference: string, credentials: readonly RegistryCredentials[], signal?: AbortSignal): Promise<RemoteKind> {
    const parsed = parseReference(reference);
    const record = await this.#findRecord(parsed);
    const cached = record === undefined ? undefined : await this.#records.readImage(record.digest);
    if (cached === undefined) return classifyManifest(this.#session(parsed, credentials), parsed, this.#platforms, signal);
    try {
      return await quickly(signal, (quick) => classifyManifest(this.#session(parsed, credentials), parsed, this.#platforms, quick, 1));
    } catch (error) {
      if (!hasCode(error, "Unavailable")) throw error;
      return { kind: "virtual-machine", digest: cached.digest };
    }
  }

  async pull(reference: string, options: PullOptions): Promise<{ readonly image: CachedImage; readonly downloaded: boolean; readonly milliseconds: number }> {
    const startedAt = performance.now();
    const parsed = parseReference(reference);
    const name = formatReference(parsed);
    const finish = (image: CachedImage, downloaded: boolean): { readonly image: CachedImage; readonly downloaded: boolean; readonly milliseconds: number } => ({ image, downloaded, milliseconds: performance.now() - startedAt });
    throwIfCancelled(options.signal);

    if (options.policy !== "Always") {
      const cached = await this.#useCached(parsed, options);
      if (cached !== undefined) return finish(cached, false);
      if (options.policy === "Never") throw new PodyardError("NotFound", `ErrImageNeverPull: the image ${name} is not in the cache and its pull policy is Never.`);
    }

    options.onProgress?.({ reference: name, phase: "resolving", bytesDone: 0, bytesTotal: 0, speed: 0 });
    const session = this.#session(parsed, options.credentials);
    const resolved = await resolveManifest(session, parsed, this.#platforms, options.signal);
    let latest: PullProgress = { reference: name, phase: "resolving", bytesDone: 0, bytesTotal: 0, speed: 0 };
    const downloaded = (await this.#records.readImage(resolved.digest)) === undefined;
    if (downloaded) {
      const image = await readVirtualMachineImage(resolved.manifest, name, (descriptor) => session.readBlob(descriptor, options.signal));
      requirePlatform(name, image.operatingSystem, image.architecture, this.#platforms);
      const onProgress = (progress: PullProgress): void => {
        latest = progress;
        options.onProgress?.(progress);
      };
      await this.#join(name, resolved, image, session, { ...options, onProgress });
    }
    await this.#remember(parsed, name, resolved.digest, session, options.signal);
    await this.#records.touch(resolved.digest);
    const image = await this.#read(resolved.digest);
    if (image === undefined) throw new PodyardError("Internal", `The image ${name} vanished from the cache after it was pulled.`);
    options.onProgress?.({ ...latest, phase: "done" });
    return finish(image, downloaded);
  }

  async push(reference: string, source: PushSource, options: PushOptions): Promise<Digest> {
    const parsed = parseReference(reference);
    const name = formatReference(parsed);
    if (parsed.target.kind !== "tag") throw new PodyardError("InvalidArgument", `"${name}" has a digest; an image is pushed to a tag.`);
    const meter = new ProgressMeter(name, options.onProgress);
    const { repository, registry } = parsed;
    const endpoint = this.#client.session(registry, repository, options.credentials, "pull,push").origin;
    const mountable = await findMountableChunks(this.#records, parsed);
    const work = {
      upload: { endpoint, repository, signal: options.signal, backOffMilliseconds: this.#backOffMilliseconds },
      tag: parsed.target.tag,
      source,
      workers: this.#workers,
      temporaryDirectory: await this.#records.temporaryDirectory(),
      mountFrom: (digest: Digest) => mountable.get(digest),
      signal: options.signal,
      onProgress: (bytesDone: number, bytesTotal: number) => meter.update("downloading", bytesDone, bytesTotal),
    };
    const digest = await (options.format === "agoda" ? pushAgodaImage(work) : pushPodyardImage(work));
    meter.done();
    return digest;
  }

  /** Takes a disk image of this machine into the cache. Errors: as {@link importDisk}. */
  async import(reference: string, source: PushSource): Promise<Digest> {
    return this.#exclusively(() => importDisk(this.#records, reference, source));
  }

  async remove(reference: string): Promise<void> {
    await this.#exclusively(async () => {
      const references = await this.#records.references();
      const record = isDigest(reference) ? undefined : await this.#findRecord(parseReference(reference));
      const digest = isDigest(reference) ? reference : record?.digest;
      const state = digest === undefined ? undefined : await this.#records.readState(digest);
      if (digest === undefined || state === undefined) throw new PodyardError("NotFound", `The image "${reference}" is not in the cache.`);
      const others = references.filter((other) => other.digest === digest && other.reference !== record?.reference);
      if (record !== undefined && others.length > 0) {
        await this.#records.removeReference(record.reference);
        return;
      }
      if (state.owners.length > 0) throw new PodyardError("Conflict", `The image "${reference}" is used by ${state.owners.join(", ")}.`, { fix: "Stop these virtual machines first." });
      if (state.isPinned) throw new PodyardError("Conflict", `The image "${reference}" is pinned.`, { fix: "Unpin it first." });
      for (const other of references) if (other.digest === digest) await this.#records.removeReference(other.reference);
      await this.#discard(digest);
    });
  }

  async pin(reference: string, pinned: boolean): Promise<void> {
    await this.#exclusively(async () => {
      const image = await this.find(reference);
      if (image === undefined) throw new PodyardError("NotFound", `The image "${reference}" is not in the cache.`);
      await this.#records.setPinned(image.digest, pinned);
    });
  }

  async retain(digest: Digest, owner: string): Promise<void> {
    await this.#exclusively(async () => {
      if ((await this.#records.readImage(digest)) === undefined) throw new PodyardError("NotFound", `The image ${digest} is not in the cache.`);
      await this.#records.addOwner(digest, this.#ownPrefix + owner);
      await this.#records.touch(digest);
    });
  }

  async release(owner: string): Promise<void> {
    await this.#exclusively(() => this.#records.removeOwner(this.#ownPrefix + owner));
  }

  async collectGarbage(bytesNeeded: number): Promise<number> {
    return this.#exclusively(async () => {
      let freed = 0;
      for (const staging of (await this.#records.stagings()).toSorted((a, b) => a.modifiedAt.getTime() - b.modifiedAt.getTime())) {
        if (freed >= bytesNeeded) return freed;
        if (staging.owner === "another" || (staging.owner === "this-store" && this.#flights.has(staging.digest))) continue;
        freed += await allocatedBytes(staging.path);
        await this.#records.discard(staging.path);
      }
      const youngest = Date.now() - (this.#options.minimumAgeMilliseconds ?? 120_000);
      const states = await Promise.all((await this.#records.digests()).map((digest) => this.#records.readState(digest)));
      const candidates = states.filter((state) => state !== undefined).filter((state) => !state.isPinned && state.owners.length === 0 && state.lastUsedAt.getTime() <= youngest);
      for (const state of candidates.toSorted((a, b) => a.lastUsedAt.getTime() - b.lastUsedAt.getTime())) {
        if (freed >= bytesNeeded) break;
        const { digest } = state.record;
        for (const reference of await this.#records.references()) if (reference.digest === digest) await this.#records.removeReference(reference.reference);
        await this.#discard(digest);
        freed += state.sizeOnDisk;
        this.#logger.info("an image was removed to free space", { digest, bytes: state.sizeOnDisk });
      }
      return freed;
    });
  }

  async usage(): Promise<{ readonly usedBytes: number; readonly availableBytes: number; readonly capacityBytes: number }> {
    const directories = [...(await this.#records.digests()).map((digest) => this.#records.imageDirectory(digest)), ...(await this.#records.stagings()).map((staging) => staging.path)];
    const sizes = await Promise.all(directories.map(allocatedBytes));
    return { usedBytes: sizes.reduce((sum, size) => sum + size, 0), ...(await this.#space()) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new PodyardError("Cancelled", "The image store was closed.");
    const flights = [...this.#flights.values()];
    for (const flight of flights) flight.cancel(closed);
    await this.#workers[Symbol.asyncDispose]();
    await Promise.all(flights.map((flight) => flight.ended));
    this.#client.close();
    this.#records.close();
  }

  get #backOffMilliseconds(): number {
    return this.#options.registry?.backOffMilliseconds ?? 500;
  }

  get #ownPrefix(): string {
    return this.#options.host === undefined ? "" : `${this.#options.host}.`;
  }

  #session(reference: ImageReference, credentials: readonly RegistryCredentials[]): RegistrySession {
    return this.#client.session(reference.registry, reference.repository, credentials);
  }

  /** The cached image if the reference names one and the caller may have it. Errors: Unauthorized, Cancelled. */
  async #useCached(parsed: ImageReference, options: PullOptions): Promise<CachedImage | undefined> {
    const record = await this.#findRecord(parsed);
    if (record === undefined || (await this.#records.readImage(record.digest)) === undefined) return undefined;
    if (record.isPrivate) await this.#requireAccess(parsed, record, options);
    await this.#records.touch(record.digest);
    return this.#read(record.digest);
  }

  /**
   * As the kubelet's credential verification for pulled images: a private image is given to who holds credentials that
   * were accepted for it before, or that the registry accepts now.
   */
  async #requireAccess(parsed: ImageReference, record: ReferenceRecord, { credentials, signal }: PullOptions): Promise<void> {
    const key = await this.#records.fingerprintKey();
    if (credentials.some((candidate) => record.accepted.includes(persistentFingerprintOf(candidate, key)))) return;
    const { origin } = this.#session(parsed, credentials);
    try {
      const isVisible = await quickly(signal, (quick) => origin.hasManifest(record.digest, quick, 1));
      if (!isVisible) throw new PodyardError("Unauthorized", `The image ${record.reference} is in the cache, but the registry does not show it to these credentials.`);
    } catch (error) {
      if (!hasCode(error, "Unavailable")) throw error;
      this.#logger.warn("the registry is away: a cached private image is used without asking it", { reference: record.reference });
      return;
    }
    const accepted = origin.acceptedCredentials;
    if (accepted !== undefined) await this.#records.writeReference({ ...record, accepted: [...record.accepted.slice(-63), persistentFingerprintOf(accepted, key)] });
  }

  async #findRecord(parsed: ImageReference): Promise<ReferenceRecord | undefined> {
    const record = await this.#records.readReference(formatReference(parsed));
    if (record !== undefined || parsed.target.kind === "tag") return record;
    const { digest } = parsed.target;
    return (await this.#records.references()).find((other) => other.digest === digest && other.reference.startsWith(`${parsed.registry}/${parsed.repository}:`));
  }

  async #remember(parsed: ImageReference, reference: string, digest: Digest, session: RegistrySession, signal: AbortSignal | undefined): Promise<void> {
    const credentials = session.origin.acceptedCredentials;
    if (credentials === undefined) return this.#records.writeReference({ reference, digest, isPrivate: false, accepted: [] });
    const isPublic = await quickly(signal, (quick) => this.#session(parsed, []).origin.hasManifest(digest, quick, 1)).catch((error: unknown) => {
      if (hasCode(error, "Cancelled")) throw error;
      return false;
    });
    const before = await this.#records.readReference(reference);
    const known = before?.digest === digest ? before.accepted : [];
    const fingerprint = persistentFingerprintOf(credentials, await this.#records.fingerprintKey());
    return this.#records.writeReference({ reference, digest, isPrivate: !isPublic, accepted: [...new Set([...known, fingerprint])].slice(-64) });
  }

  /** Takes part in the download of a manifest, starting it if nobody else did. */
  async #join(name: string, resolved: ResolvedManifest, image: VirtualMachineImage, session: RegistrySession, options: PullOptions): Promise<void> {
    const { digest } = resolved;
    for (let flight = this.#flights.get(digest); flight?.isLeaving === true; flight = this.#flights.get(digest)) await flight.ended;
    const flight = this.#flights.get(digest) ?? this.#start(name, resolved, image, session);
    await flight.join(options.signal, options.onProgress && ((progress) => options.onProgress?.({ ...progress, reference: name })));
  }

  #start(name: string, resolved: ResolvedManifest, image: VirtualMachineImage, session: RegistrySession): Flight<PullProgress> {
    const { digest, bytes: manifest } = resolved;
    const flight = new Flight<PullProgress>(async (signal, report) => {
      const meter = new ProgressMeter(name, report);
      try {
        const environment = {
          records: this.#records,
          workers: this.#workers,
          logger: this.#logger,
          localSources: await findLocalSources(this.#records, image, digest, this.#options.importDirectories ?? [join(this.#options.cacheDirectory, "blobs")]),
          bases: await findBases(this.#records, digest),
          cloneFile: this.#options.cloneFile ?? cloneFile,
          ensureSpace: (bytes: number) => this.#ensureSpace(name, bytes),
          parallelDownloads: this.#options.parallelDownloads ?? this.#workers.size + 4,
          backOffMilliseconds: this.#backOffMilliseconds,
        };
        await pullImage({ name, digest, manifest, image, session, signal, onProgress: ({ phase, bytesDone, bytesTotal }) => meter.update(phase, bytesDone, bytesTotal) }, environment);
      } finally {
        this.#flights.delete(digest);
      }
    });
    this.#flights.set(digest, flight);
    return flight;
  }

  async #ensureSpace(name: string, bytesNeeded: number): Promise<void> {
    const wanted = bytesNeeded + (this.#options.reserveBytes ?? 1024 ** 3);
    let { availableBytes } = await this.#space();
    if (bytesNeeded === 0 || availableBytes >= wanted) return;
    await this.collectGarbage(wanted - availableBytes);
    ({ availableBytes } = await this.#space());
    if (availableBytes >= wanted) return;
    throw new PodyardError("NoSpace", `Pulling ${name} needs ${wanted} bytes in ${this.#options.cacheDirectory} (the image and the reserve); ${availableBytes} bytes are free.`, {
      fix: "Free space, or remove images that are not used.",
    });
  }

  #space(): Promise<{ readonly availableBytes: number; readonly capacityBytes: number }> {
    return (this.#options.fileSystemSpace ?? fileSystemSpace)(this.#options.cacheDirectory);
  }

  async #read(digest: Digest): Promise<CachedImage | undefined> {
    const [state, references] = await Promise.all([this.#records.readState(digest), this.#records.references()]);
    return state === undefined ? undefined : this.#toCachedImage(state, references);
  }

  #toCachedImage({ record, sizeOnDisk, lastUsedAt, isPinned, owners }: ImageState, references: readonly ReferenceRecord[]): CachedImage {
    const { digest, operatingSystem, architecture, diskSize, hardwareModel, machineIdentifier, guest } = record;
    return {
      references: references.filter((reference) => reference.digest === digest).map((reference) => reference.reference).toSorted(),
      digest,
      operatingSystem,
      architecture,
      diskPath: this.#records.diskPath(digest),
      diskSize,
      auxiliaryPath: record.auxiliarySize > 0 ? this.#records.auxiliaryPath(digest) : undefined,
      hardwareModel,
      machineIdentifier,
      guest,
      sizeOnDisk,
      pulledAt: new Date(record.pulledAt),
      lastUsedAt,
      pinned: isPinned,
      usedBy: owners.map((owner) => (owner.startsWith(this.#ownPrefix) ? owner.slice(this.#ownPrefix.length) : owner)),
    };
  }

  async #discard(digest: Digest): Promise<void> {
    await this.#records.discard(this.#records.imageDirectory(digest));
    this.#records.forget(digest);
  }

  /** What decides whether an image is in use must not run beside what removes one. */
  async #exclusively<T>(act: () => Promise<T>): Promise<T> {
    const result = this.#exclusive.then(act);
    this.#exclusive = result.catch(() => undefined);
    return result;
  }
}

/** Gives up after a few seconds with Unavailable. */
async function quickly<T>(signal: AbortSignal | undefined, act: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const timeout = AbortSignal.timeout(quickAnswerMilliseconds);
  try {
    return await act(signal === undefined ? timeout : AbortSignal.any([signal, timeout]));
  } catch (error) {
    if (signal?.aborted === true) throw cancelled(signal);
    if (timeout.aborted) throw new PodyardError("Unavailable", `The registry did not answer within ${quickAnswerMilliseconds / 1000} s.`, { cause: error });
    throw error;
  }
}

function hostPlatforms(): readonly AcceptedPlatform[] {
  if (platform() === "darwin") return [{ operatingSystem: "darwin", architecture: "arm64" }, { operatingSystem: "linux", architecture: "arm64" }];
  return [{ operatingSystem: "linux", architecture: arch() === "arm64" ? "arm64" : "amd64" }];
}
