/**
 * The errors that cross a layer. Each carries a code (for programs), a sentence (for the user) and, where we know it, the
 * fix. One place per edge turns them into an event, an HTTP status or an exit code; nothing else inspects messages.
 */
export type ErrorCode =
  | "InvalidArgument" // the caller's input; the message names field, value and what is allowed
  | "NotFound"
  | "AlreadyExists"
  | "Conflict" // the state forbids it now
  | "Unauthorized"
  | "Forbidden"
  | "Unavailable" // a dependency is away: registry, engine, API server, guest
  | "Unsupported" // this host, driver or platform cannot
  | "MissingPrerequisite" // something must be installed or granted; `fix` says what
  | "NoSpace"
  | "Corrupt" // digest mismatch, truncated or unreadable data
  | "Cancelled"
  | "Timeout"
  | "Internal";

export class PodyardError extends Error {
  override readonly name = "PodyardError";
  readonly code: ErrorCode;
  /** What the user can do about it, one sentence or a command. */
  readonly fix: string | undefined;

  constructor(code: ErrorCode, message: string, options?: { readonly cause?: unknown; readonly fix?: string }) {
    super(message, options?.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.fix = options?.fix;
  }
}

/** True for a {@link PodyardError} with one of the codes. */
export function hasCode(error: unknown, ...codes: readonly ErrorCode[]): error is PodyardError {
  return error instanceof PodyardError && codes.includes(error.code);
}

/** The sentence with what to do about it, the same wherever it is shown: a condition, an event, a status. */
export function sentenceWithFix(message: string, fix: string | undefined): string {
  return fix === undefined || fix === "" ? message : `${message}${/[.!?]$/.test(message) ? "" : "."} ${fix}`;
}

/** The sentence of any thrown value, with the sentences of its causes, without repeating one. */
export function messageOf(error: unknown): string {
  const sentences: string[] = [];
  for (let current = error; current !== undefined && current !== null && sentences.length < 5; current = current instanceof Error ? current.cause : undefined) {
    const sentence = current instanceof Error ? current.message : typeof current === "string" ? current : JSON.stringify(current);
    if (sentence !== "" && !sentences.some((known) => known.includes(sentence))) sentences.push(sentence);
  }
  return sentences.join(": ");
}
