/** The log of the headless host: one line per entry on stderr, as text for people or JSON for machines. */
import type { Logger } from "../contract/logger.ts";

export type LogFormat = "text" | "json";
type Level = "debug" | "info" | "warn" | "error";
const levels: readonly Level[] = ["debug", "info", "warn", "error"];

export function createLogger(format: LogFormat, lowest: Level, write: (line: string) => void = (line) => void process.stderr.write(line)): Logger {
  const make = (base: Readonly<Record<string, unknown>>): Logger => {
    const log =
      (level: Level) =>
      (message: string, fields: Readonly<Record<string, unknown>> = {}): void => {
        if (levels.indexOf(level) < levels.indexOf(lowest)) return;
        const all = { ...base, ...fields };
        const time = new Date().toISOString();
        write(format === "json" ? `${JSON.stringify({ time, level, message, ...all })}\n` : `${time} ${level.padEnd(5)} ${message}${textOf(all)}\n`);
      };
    return { debug: log("debug"), info: log("info"), warn: log("warn"), error: log("error"), child: (fields) => make({ ...base, ...fields }) };
  };
  return make({});
}

/** Control characters are escaped by JSON, so that hostile text cannot forge a line. */
function textOf(fields: Readonly<Record<string, unknown>>): string {
  return Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => ` ${key}=${typeof value === "string" && /^[\w./:@+-]+$/.test(value) ? value : JSON.stringify(value)}`)
    .join("");
}
