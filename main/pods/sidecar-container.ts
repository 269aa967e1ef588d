/**
 * A container on the Docker engine: side-car, init or ephemeral container. Its exit does what its restart policy says and
 * nothing else. The container before the present one is kept, for `kubectl logs --previous`. `prepare` finds a container
 * of this attempt again by its labels, so that neither a crash of the host nor of the engine's connection doubles it.
 */
import { createHash } from "node:crypto";
import { mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, PodyardError } from "../contract/errors.ts";
import type { PullPolicy } from "../contract/image.ts";
import type { ContainerStateTerminated } from "../contract/kubernetes-api.generated.ts";
import type { ContainerInfo, EngineImage } from "../containers/container-engine.ts";
import { KUBELET_BACKOFF } from "./backoff.ts";
import { ContainerUnit } from "./container-unit.ts";
import { connectTo } from "./dial.ts";
import { pullImage } from "./image-pull.ts";
import { repositoryOf, sentenceOf } from "./machine-exit.ts";
import { ContainerProblem, resolveInputs } from "./pod-context.ts";
import { hostEntries, hostsContent, resolvConfContent } from "./pod-network-files.ts";
import { type ContainerTarget, pause, unlessAborted } from "./pod-target.ts";
import { sidecarOptions } from "./sidecar-options.ts";

/** In case the engine's event was missed. */
const LOOK_AGAIN = 30_000;
const TERMINATION_MESSAGE_LIMIT = 4096;

export class SidecarContainer extends ContainerUnit {
  #info: ContainerInfo | undefined;
  #changed = new AbortController();

  get info(): ContainerInfo | undefined {
    return this.#info;
  }

  get mayRun(): boolean {
    return this.#info !== undefined && this.#info.state !== "exited" && this.#info.state !== "dead" && this.#info.state !== "created" && this.record.state?.terminated === undefined;
  }

  /** The engine saw something happen to a container of the Pod. */
  engineChanged(): void {
    this.#changed.abort();
    this.#changed = new AbortController();
  }

  target(): ContainerTarget {
    const { engine } = this.context.options;
    const address = this.context.network()?.sidecarIP ?? this.name;
    return {
      address,
      exec: (request) => {
        if (this.#info === undefined) throw new PodyardError("Unavailable", `Container ${this.name} does not run yet.`);
        return engine.exec(this.#info.id, request);
      },
      // A side-car's ports answer on podIP too; a probe that names podIP means this container.
      dial: (port, host, signal) => connectTo(host === undefined || host === this.context.podIPs()[0] ? address : host, port, signal),
    };
  }

  protected async prepare(signal: AbortSignal): Promise<void> {
    const { engine } = this.context.options;
    const { record } = this;
    const mine = (await engine.list(this.context.uid)).filter(({ name }) => name === this.name);
    for (const old of mine) if (old.restartCount < record.restartCount - 1) await engine.remove(old.id);
    let info = mine.find(({ restartCount }) => restartCount === record.restartCount);
    if (info === undefined && record.state?.running !== undefined) {
      await this.recordTerminated({ exitCode: 137, reason: "ContainerStatusUnknown", message: "The container could not be located when the host came back.", finishedAt: new Date().toISOString() });
      return;
    }
    // Created by an attempt that a crash cut short: its configuration may be outdated by now.
    if (info !== undefined && info.state === "created" && info.startedAt === undefined) {
      await engine.remove(info.id);
      info = undefined;
    }
    info ??= await this.#create(signal);
    this.#info = info;
    record.containerId = `docker://${info.id}`;
    if (info.state === "created") {
      await this.context.record.save();
      if (signal.aborted) throw new PodyardError("Cancelled", "The Pod is being stopped.");
      try {
        await engine.start(info.id);
      } catch (error) {
        // The engine keeps a container that could not be started; the next attempt makes a new one.
        await engine.remove(info.id).catch(() => {});
        this.#info = undefined;
        delete record.containerId;
        throw new ContainerProblem("RunContainerError", sentenceOf(error), { cause: error });
      }
      this.event("Normal", "Started", "Container started");
      info = (await engine.inspect(info.id)) ?? info;
      this.#info = info;
    }
    await this.recordRunning(info.startedAt ?? new Date());
  }

  protected async supervise(): Promise<void> {
    const { engine } = this.context.options;
    for (;;) {
      const changed = this.#changed.signal;
      const id = this.#info?.id;
      if (id === undefined) return this.recordTerminated({ exitCode: 137, reason: "ContainerStatusUnknown", finishedAt: new Date().toISOString() });
      try {
        const info = await engine.inspect(id);
        if (info === undefined) {
          this.#info = undefined;
          return await this.recordTerminated({ exitCode: 137, reason: "ContainerStatusUnknown", message: "The container was removed behind the host's back.", finishedAt: new Date().toISOString() });
        }
        this.#info = info;
        if (info.state === "exited" || info.state === "dead") return await this.recordTerminated(await this.#exitOf(info));
      } catch (error) {
        // The engine is away: what runs there goes on, and its events come back with it.
        this.context.logger.debug("A container cannot be inspected now.", { container: this.name, error: messageOf(error) });
      }
      await pause(LOOK_AGAIN, changed);
    }
  }

  protected async requestStop(graceSeconds: number): Promise<void> {
    // The engine sends the image's stop signal and waits; the unit's own deadline decides when it is too late.
    const info = this.#info;
    if (info === undefined) return;
    await this.context.options.engine.stop(info.id, graceSeconds);
    this.engineChanged();
  }

  protected async kill(): Promise<void> {
    const { engine } = this.context.options;
    let containers: readonly ContainerInfo[];
    try {
      containers = await engine.list(this.context.uid);
    } catch (error) {
      // With the engine away, a container that was never made cannot run.
      if (this.record.containerId === undefined && this.#info === undefined) return;
      throw error;
    }
    const running = containers.filter(({ name, state }) => name === this.name && (state === "running" || state === "paused" || state === "restarting"));
    for (const { id } of running) await engine.stop(id, 0);
    this.engineChanged();
  }

  async #create(signal: AbortSignal): Promise<ContainerInfo> {
    const { context, record } = this;
    const { engine, pullCredentials, settings } = context.options;
    const { spec } = this;
    const policy: PullPolicy = spec.imagePullPolicy === "Always" || spec.imagePullPolicy === "Never" ? spec.imagePullPolicy : "IfNotPresent";
    const { image, reference } = await pullImage<EngineImage>({
      reference: () => this.spec.image ?? "",
      changed: () => this.podChanged,
      policy,
      limits: settings.backoff ?? KUBELET_BACKOFF,
      signal,
      credentials: (named) => pullCredentials(context.pod(), named),
      isPresent: async (named) => (await engine.findImage(named)) !== undefined,
      pull: (named, credentials) => engine.pull(named, { policy, credentials, signal }),
      sizeOf: ({ sizeBytes }) => sizeBytes,
      event: (type, reason, message) => this.event(type, reason, message),
      onWaiting: (waiting) => this.setWaiting(waiting),
    });
    const network = await context.ready(signal);
    const inputs = await resolveInputs(context, spec);
    try {
      await unlessAborted(context.sandbox(), signal);
    } catch (error) {
      if (signal.aborted) throw error;
      context.event("Warning", "FailedCreatePodSandBox", `Failed to create pod sandbox: ${sentenceOf(error)}`);
      throw new ContainerProblem("CreateContainerError", `The side-cars' sandbox could not be made: ${sentenceOf(error)}`, { cause: error });
    }
    const hostname = context.hostname();
    const hosts = await context.volumes.writeManagedFile(context.uid, "hosts", hostsContent(hostEntries(context.pod(), hostname, { self: network.sidecarIP, podIP: network.podIP, sidecarIP: network.sidecarIP })));
    const resolver = await context.volumes.writeManagedFile(context.uid, "resolv.conf", resolvConfContent(context.dns(), network.gatewayIP));
    const messagePath = spec.terminationMessagePath ?? "/dev/termination-log";
    const options = sidecarOptions(context.pod(), spec, image);
    const { name = "", namespace = "" } = context.pod().metadata ?? {};
    const own = inputs.mounts.map(({ hostPath, mountPath, readOnly, propagation }) => ({ hostPath, containerPath: mountPath, readOnly, propagation }));
    const managed = [
      { hostPath: hosts, containerPath: "/etc/hosts", readOnly: false },
      { hostPath: resolver, containerPath: "/etc/resolv.conf", readOnly: false },
      { hostPath: await this.#messageFile(), containerPath: messagePath, readOnly: false },
    ].filter(({ containerPath }) => own.every((mount) => mount.containerPath !== containerPath));
    try {
      const info = await engine.create({
        podUid: context.uid,
        namespace,
        podName: name,
        name: this.name,
        restartCount: record.restartCount,
        image: image.id,
        ...(inputs.command === undefined ? {} : { command: inputs.command }),
        ...(inputs.args === undefined ? {} : { args: inputs.args }),
        environment: inputs.variables,
        ...(spec.workingDir === undefined || spec.workingDir === "" ? {} : { workingDirectory: spec.workingDir }),
        stdin: spec.stdin ?? false,
        stdinOnce: spec.stdinOnce ?? false,
        terminal: spec.tty ?? false,
        mounts: [...own, ...managed],
        ...options,
        labels: { "dev.podyard.spec-hash": createHash("sha256").update(JSON.stringify(spec)).digest("hex").slice(0, 16) },
      });
      record.image = reference;
      const digest = image.repositoryDigests.find((entry) => entry.startsWith(`${repositoryOf(reference)}@`)) ?? image.repositoryDigests[0];
      record.imageId = digest ?? image.id;
      if (spec.resources !== undefined) record.resources = spec.resources;
      this.event("Normal", "Created", "Container created");
      return info;
    } catch (error) {
      throw new ContainerProblem("CreateContainerError", sentenceOf(error), { cause: error });
    }
  }

  #messagePath(): string {
    return join(this.context.record.directory, "containers", this.name, String(this.record.restartCount));
  }

  /** An empty file that the container may write its termination message into, whoever it runs as. */
  async #messageFile(): Promise<string> {
    const path = this.#messagePath();
    await mkdir(join(path, ".."), { recursive: true, mode: 0o700 });
    await using file = await open(path, "w", 0o666);
    await file.chmod(0o666);
    return path;
  }

  async #exitOf(info: ContainerInfo): Promise<ContainerStateTerminated> {
    const exitCode = info.exitCode ?? 137;
    const message = await this.#terminationMessage(info, exitCode);
    return {
      exitCode,
      reason: info.outOfMemoryKilled ? "OOMKilled" : exitCode === 0 ? "Completed" : "Error",
      ...(message === "" ? {} : { message }),
      ...(info.startedAt === undefined ? {} : { startedAt: info.startedAt.toISOString() }),
      finishedAt: (info.finishedAt ?? new Date()).toISOString(),
    };
  }

  async #terminationMessage(info: ContainerInfo, exitCode: number): Promise<string> {
    try {
      await using file = await open(this.#messagePath(), "r");
      const { size } = await file.stat();
      const buffer = Buffer.alloc(Math.min(size, TERMINATION_MESSAGE_LIMIT));
      const { bytesRead } = await file.read(buffer, 0, buffer.length, Math.max(0, size - buffer.length));
      if (bytesRead > 0) return buffer.toString("utf8", 0, bytesRead);
    } catch {
      // The host may have been asked to forget it; the logs may still serve.
    }
    if (info.error !== undefined && info.error !== "") return info.error;
    if (exitCode === 0 || this.spec.terminationMessagePolicy !== "FallbackToLogsOnError") return "";
    try {
      const stream = await this.context.options.engine.logs(info.id, { follow: false, previous: false, timestamps: false, tailLines: 80 });
      let text: Buffer = Buffer.alloc(0);
      for await (const chunk of stream as AsyncIterable<Buffer | string>) {
        text = Buffer.concat([text, Buffer.from(chunk)]);
        if (text.length > 2048) text = text.subarray(-2048);
      }
      return text.toString("utf8");
    } catch {
      return "";
    }
  }
}
