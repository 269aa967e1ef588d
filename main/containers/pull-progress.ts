/**
 * The engine's progress stream: JSON lines after a status 200, so that an error hides in the stream. Read line by line,
 * none is kept.
 */
import type { Readable } from "node:stream";
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";

const lineSchema = z.object({
  status: z.string().optional(),
  error: z.string().optional(),
  errorDetail: z.object({ message: z.string() }).optional(),
});

/** Reads to the end. Errors: see {@link pullError}. */
export async function readProgress(stream: Readable, action: string, onStatus: (status: string) => void): Promise<void> {
  let rest = "";
  const take = (line: string): void => {
    if (line.trim() === "") return;
    const parsed = lineSchema.safeParse(parseJson(line));
    if (!parsed.success) return;
    const failure = parsed.data.errorDetail?.message ?? parsed.data.error;
    if (failure !== undefined) throw pullError(failure, action);
    if (parsed.data.status !== undefined) onStatus(parsed.data.status);
  };
  const decoder = new TextDecoder();
  for await (const chunk of stream) {
    rest += decoder.decode(chunk, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) take(line);
  }
  take(rest);
}

/**
 * The sentence of the engine as a PodyardError: it gives no codes. What a registry answers to a wrong password differs, so
 * we look for the words of the distribution specification's error codes and of Go's network errors.
 */
export function pullError(sentence: string, action: string, cause?: unknown): PodyardError {
  const message = `Cannot ${action}: ${sentence.trim()}`;
  const options = { cause };
  if (/no space left on device/i.test(sentence)) return new PodyardError("NoSpace", message, { ...options, fix: "Free space in the engine's data directory." });
  if (/unauthorized|authentication required|no basic auth credentials|incorrect username or password|\b401\b|\b403\b|forbidden/i.test(sentence)) {
    return new PodyardError("Unauthorized", message, { ...options, fix: "Check the Pod's imagePullSecrets." });
  }
  if (/pull access denied|denied:/i.test(sentence)) return new PodyardError("NotFound", message, options);
  if (/manifest unknown|name unknown|not found|repository does not exist|no matching manifest|\b404\b/i.test(sentence))
    return new PodyardError("NotFound", message, options);
  if (/invalid reference format|invalid repository name|invalid tag|must be lowercase/i.test(sentence))
    return new PodyardError("InvalidArgument", message, options);
  if (
    /connection refused|no such host|i\/o timeout|timeout|connection reset|network is unreachable|no route to host|EOF|TLS handshake|x509|server gave HTTP response|toomanyrequests|\b5\d\d\b|dial tcp|context canceled/i.test(
      sentence,
    )
  ) {
    return new PodyardError("Unavailable", message, options);
  }
  if (/filesystem layer verification failed|digest|unexpected end|checksum/i.test(sentence)) return new PodyardError("Corrupt", message, options);
  return new PodyardError("Internal", message, options);
}

function parseJson(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
