/**
 * The CRI log format, `<RFC3339Nano> <stdout|stderr> <F|P> <content>`, and turning such records into what a reader asked
 * for. Pure. P marks a line that was cut; the record after it continues it.
 * https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
 */
import type { LogRequest } from "../contract/streams.ts";

export interface LogRecord {
  readonly time: string;
  readonly stream: "stdout" | "stderr";
  readonly partial: boolean;
  readonly content: Buffer;
}

const SPACE = 0x20;

/** The record of one line of the file without its newline; undefined if it is none (a torn or foreign line). */
export function parseRecord(line: Buffer): LogRecord | undefined {
  const first = line.indexOf(SPACE);
  const second = first < 0 ? -1 : line.indexOf(SPACE, first + 1);
  if (second < 0) return undefined;
  const third = line.indexOf(SPACE, second + 1);
  const time = line.toString("latin1", 0, first);
  const stream = line.toString("latin1", first + 1, second);
  const tag = line.toString("latin1", second + 1, third < 0 ? undefined : third).split(":")[0];
  if ((stream !== "stdout" && stream !== "stderr") || (tag !== "F" && tag !== "P") || Number.isNaN(Date.parse(time))) return undefined;
  return { time, stream, partial: tag === "P", content: third < 0 ? Buffer.alloc(0) : line.subarray(third + 1) };
}

export function formatRecord(time: string, stream: "stdout" | "stderr", partial: boolean, content: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${time} ${stream} ${partial ? "P" : "F"} `), content, Buffer.from("\n")]);
}

/** Filters and formats records for one reader. */
export class LogFormatter {
  readonly #request: Pick<LogRequest, "timestamps" | "sinceTime" | "stream" | "limitBytes">;
  #left: number;
  /** Streams whose last record was partial: the next one gets no time. */
  readonly #open = new Set<string>();

  constructor(request: Pick<LogRequest, "timestamps" | "sinceTime" | "stream" | "limitBytes">) {
    this.#request = request;
    this.#left = request.limitBytes ?? Number.POSITIVE_INFINITY;
  }

  /** The limit is used up: nothing more will come. */
  get exhausted(): boolean {
    return this.#left <= 0;
  }

  format(record: LogRecord): Buffer | undefined {
    const { sinceTime, stream, timestamps } = this.#request;
    if (sinceTime !== undefined && Date.parse(record.time) < sinceTime.getTime()) return undefined;
    if (stream === "Stdout" && record.stream !== "stdout") return undefined;
    if (stream === "Stderr" && record.stream !== "stderr") return undefined;
    const parts: Buffer[] = [];
    if (timestamps && !this.#open.has(record.stream)) parts.push(Buffer.from(`${record.time} `));
    parts.push(record.content);
    if (record.partial) this.#open.add(record.stream);
    else {
      this.#open.delete(record.stream);
      parts.push(Buffer.from("\n"));
    }
    const whole = Buffer.concat(parts);
    const text = whole.length > this.#left ? whole.subarray(0, this.#left) : whole;
    this.#left -= text.length;
    return text;
  }
}
