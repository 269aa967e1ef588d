/** Prints lists and objects as `table`, `json` (`{"items":[…]}`) or `yaml`, as `kubectl` and `docker` users expect. */
import { createRequire } from "node:module";
import type * as Yaml from "yaml";

export type OutputFormat = "table" | "json" | "yaml";
export const outputFormats: readonly OutputFormat[] = ["table", "json", "yaml"];

export interface Column<Item> {
  readonly title: string;
  readonly value: (item: Item) => string;
  readonly alignRight?: boolean;
}

/** The text of a list in the format, with a final newline. An empty table says so instead of printing only titles. */
export function formatList<Item>(items: readonly Item[], columns: readonly Column<Item>[], format: OutputFormat, emptySentence: string): string {
  if (format === "json") return `${JSON.stringify({ items }, undefined, 2)}\n`;
  if (format === "yaml") return toYaml({ items });
  if (items.length === 0) return `${emptySentence}\n`;
  const rows = [columns.map((column) => column.title), ...items.map((item) => columns.map((column) => column.value(item)))];
  const widths = columns.map((_, index) => Math.max(...rows.map((row) => row[index]?.length ?? 0)));
  return rows
    .map((row) =>
      row
        .map((cell, index) => (columns[index]?.alignRight === true ? cell.padStart(widths[index] ?? 0) : cell.padEnd(widths[index] ?? 0)))
        .join("   ")
        .trimEnd(),
    )
    .map((line) => `${line}\n`)
    .join("");
}

/** The text of one object: `fields` are the lines of the table form. */
export function formatObject(value: unknown, fields: readonly (readonly [string, string])[], format: OutputFormat): string {
  if (format === "json") return `${JSON.stringify(value, undefined, 2)}\n`;
  if (format === "yaml") return toYaml(value);
  const width = Math.max(...fields.map(([title]) => title.length));
  return fields.map(([title, text]) => `${`${title}:`.padEnd(width + 2)}${text.replaceAll("\n", `\n${" ".repeat(width + 2)}`)}\n`).join("");
}

/** `1.5 GiB`. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 1 : 0)} ${units[unit]}`;
}

/** Age as kubectl prints it: `45s`, `3m`, `5h`, `12d`. */
export function formatAge(since: string | Date | undefined, now = new Date()): string {
  if (since === undefined) return "-";
  const seconds = Math.max(0, Math.floor((now.getTime() - new Date(since).getTime()) / 1000));
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

/** The library is loaded by who wants YAML only; it is half of what a list would load. */
function toYaml(value: unknown): string {
  const { stringify } = createRequire(import.meta.url)("yaml") as typeof Yaml;
  return stringify(value);
}
