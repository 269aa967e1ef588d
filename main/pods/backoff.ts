/**
 * Exponential back-off as the kubelet does it for restarts and image pulls: the first failure is retried at once, then
 * 10 s, 20 s … 300 s; forgotten once the last failure is older than twice the maximum. The state is plain data, so that it
 * can live in the Pod's record and a restart of the host does not reset it.
 */
export interface BackoffState {
  /** The wait that follows the last failure, milliseconds; 0 = none yet. */
  readonly delay: number;
  /** Time of the last failure, milliseconds since the epoch. */
  readonly at: number;
}

export interface BackoffLimits {
  /** Milliseconds. */
  readonly initial: number;
  readonly maximum: number;
}

export const KUBELET_BACKOFF: BackoffLimits = { initial: 10_000, maximum: 300_000 };

/**
 * The state after a failure at `now`. The wait before the next attempt is the `delay` of the state *before* it
 * (see {@link remaining}).
 */
export function afterFailure(state: BackoffState | undefined, now: number, limits: BackoffLimits = KUBELET_BACKOFF): BackoffState {
  if (state === undefined || now - state.at > limits.maximum * 2) return { delay: limits.initial, at: now };
  return { delay: Math.min(limits.maximum, Math.max(limits.initial, state.delay * 2)), at: now };
}

/** Milliseconds still to wait until `delay` after `since` is over; never negative. */
export function remaining(delay: number, since: number, now: number): number {
  // A clock set back must not turn ten seconds into a day.
  return Math.min(delay, Math.max(0, since + delay - now));
}

/** `10s`, `1m20s`, `5m0s`: durations as Go prints them, since operators grep for the kubelet's messages. */
export function formatDuration(milliseconds: number): string {
  if (milliseconds < 1000) return milliseconds === 0 ? "0s" : `${trim(milliseconds)}ms`;
  const hours = Math.floor(milliseconds / 3_600_000);
  const minutes = Math.floor((milliseconds % 3_600_000) / 60_000);
  const seconds = trim((milliseconds % 60_000) / 1000);
  return (hours > 0 ? `${hours}h` : "") + (hours > 0 || minutes > 0 ? `${minutes}m` : "") + `${seconds}s`;
}

function trim(value: number): string {
  return String(Number(value.toFixed(3)));
}
