/**
 * Startup, liveness and readiness of one running container. The startup probe gates the other two; readiness starts out
 * false and liveness true; a liveness or startup failure kills the container. A new prober is made for each start.
 * https://kubernetes.io/docs/concepts/workloads/pods/probes/
 */
import type { Container, EphemeralContainer, Probe } from "../contract/kubernetes-api.generated.ts";
import { pause } from "./pod-target.ts";
import type { CheckResult } from "./probe-actions.ts";

export type ProbeKind = "startup" | "liveness" | "readiness";

/** How often the same result came in a row. */
export interface ProbeRun {
  readonly last: "success" | "failure" | undefined;
  readonly count: number;
}

export const NO_RUN: ProbeRun = { last: undefined, count: 0 };

/** Pure: the run after one more result, and whether it reached its threshold. */
export function countResult(run: ProbeRun, result: "success" | "failure", probe: Probe): { readonly run: ProbeRun; readonly decided: boolean } {
  const next: ProbeRun = { last: result, count: run.last === result ? run.count + 1 : 1 };
  const threshold = result === "success" ? (probe.successThreshold ?? 1) : (probe.failureThreshold ?? 3);
  return { run: next, decided: next.count >= threshold };
}

export interface ProberOptions {
  readonly container: Container | EphemeralContainer;
  readonly startedAt: Date;
  /** What was known before a restart of the host, so that a ready container does not flap. */
  readonly initial?: { readonly started: boolean; readonly ready: boolean };
  check(probe: Probe, signal: AbortSignal): Promise<CheckResult>;
  onChange(): void;
  onEvent(reason: "Unhealthy" | "ProbeWarning", message: string): void;
  /** The container must be killed; `graceSeconds` is the probe's own, if any. */
  onKill(kind: "startup" | "liveness", graceSeconds: number | undefined): void;
}

export class ContainerProber {
  readonly #options: ProberOptions;
  readonly #stop = new AbortController();
  readonly #stopKilling = new AbortController();
  readonly #triggers = new Set<() => void>();
  #started: boolean;
  #ready: boolean;
  #killed = false;

  constructor(options: ProberOptions) {
    this.#options = options;
    const { startupProbe, readinessProbe, livenessProbe } = options.container;
    this.#started = startupProbe === undefined || options.initial?.started === true;
    this.#ready = readinessProbe === undefined || options.initial?.ready === true;
    if (startupProbe !== undefined && !this.#started) void this.#run("startup", startupProbe);
    if (livenessProbe !== undefined) void this.#run("liveness", livenessProbe);
    if (readinessProbe !== undefined) void this.#run("readiness", readinessProbe);
  }

  get started(): boolean {
    return this.#started;
  }

  get ready(): boolean {
    return this.#started && this.#ready && !this.#stop.signal.aborted;
  }

  /** At deletion: no more killing; readiness goes on, so that traffic moves away. */
  stopKilling(): void {
    this.#stopKilling.abort();
  }

  /** The container ended. */
  stop(): void {
    this.#stop.abort();
    this.#stopKilling.abort();
  }

  async #run(kind: ProbeKind, probe: Probe): Promise<void> {
    const signal = kind === "readiness" ? this.#stop.signal : this.#stopKilling.signal;
    const period = (probe.periodSeconds ?? 10) * 1000;
    let run = NO_RUN;
    const firstAt = this.#options.startedAt.getTime() + (probe.initialDelaySeconds ?? 0) * 1000;
    await pause(Math.max(0, firstAt - Date.now()), signal);
    while (!signal.aborted) {
      if (kind !== "startup" && !this.#started) {
        await this.#whenTriggered(signal);
        continue;
      }
      if (kind === "startup" && this.#started) return;
      const result = await this.#checkThrice(probe, signal);
      if (signal.aborted) return;
      if (result.outcome !== "error") {
        const counted = countResult(run, result.outcome, probe);
        run = counted.run;
        if (result.outcome === "failure") this.#options.onEvent("Unhealthy", `${titleOf(kind)} probe failed: ${result.output}`);
        else if (result.warning !== undefined) this.#options.onEvent("ProbeWarning", `${titleOf(kind)} probe warning: ${result.warning}`);
        if (counted.decided) {
          this.#decide(kind, result.outcome, probe);
          if (result.outcome === "failure" && kind !== "readiness") return;
        }
      } else {
        this.#options.onEvent("Unhealthy", `${titleOf(kind)} probe errored and resulted in unknown state: ${result.output}`);
      }
      await pause(period, signal);
    }
  }

  async #checkThrice(probe: Probe, signal: AbortSignal): Promise<CheckResult> {
    let result: CheckResult = { outcome: "error", output: "" };
    for (let attempt = 0; attempt < 3 && !signal.aborted; attempt++) {
      result = await this.#options.check(probe, signal);
      if (result.outcome !== "error") return result;
    }
    return result;
  }

  #decide(kind: ProbeKind, outcome: "success" | "failure", probe: Probe): void {
    if (kind === "readiness") {
      if (this.#ready === (outcome === "success")) return;
      this.#ready = outcome === "success";
    } else if (outcome === "failure") {
      if (this.#killed) return;
      this.#killed = true;
      this.#options.onKill(kind, probe.terminationGracePeriodSeconds);
    } else if (kind === "startup") {
      this.#started = true;
      // The others do not wait for their next period: a started container shall be ready at once.
      for (const trigger of this.#triggers) trigger();
    }
    this.#options.onChange();
  }

  async #whenTriggered(signal: AbortSignal): Promise<void> {
    const wake = new AbortController();
    const trigger = () => wake.abort();
    this.#triggers.add(trigger);
    await pause(2 ** 31 - 1, AbortSignal.any([signal, wake.signal]));
    this.#triggers.delete(trigger);
  }

}

function titleOf(kind: ProbeKind): string {
  return kind.charAt(0).toUpperCase() + kind.slice(1);
}
