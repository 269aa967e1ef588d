/**
 * Puts the settings together: flags over environment (the variables of macOS-vz-kubelet, so that a fleet can switch) over
 * the `--config` file over `DATA_DIR/settings.json` over defaults. An error names source, path, value and what is allowed.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { parse } from "yaml";
import { z } from "zod";
import { PodyardError, messageOf } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import { readOptionalFile, setAside } from "../records/atomic-file.ts";
import { type Settings, settingsSchema } from "./settings.ts";

export interface SettingsSources {
  /** Values of flags that were given, as paths into {@link Settings}. */
  readonly flags: Readonly<Record<string, unknown>>;
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** `--config`: YAML or JSON. */
  readonly configFile: string | undefined;
  readonly dataDirectory: string;
  readonly logger: Logger;
}

/** Errors: InvalidArgument (exit code 2). */
export async function loadSettings(sources: SettingsSources): Promise<Settings> {
  const layers: { readonly name: string; readonly values: Record<string, unknown> }[] = [
    { name: "settings.json", values: await storedSettings(sources.dataDirectory, sources.logger) },
  ];
  if (sources.configFile !== undefined) layers.push({ name: sources.configFile, values: await readConfigurationFile(sources.configFile) });
  layers.push({ name: "environment", values: fromEnvironment(sources.environment) }, { name: "command line", values: { ...sources.flags } });
  const merged = layers.reduce<Record<string, unknown>>((under, layer) => merge(under, layer.values), {});
  const result = settingsSchema.safeParse(merged);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const path = issue?.path.map(String) ?? [];
  const unknownKeys = issue?.code === "unrecognized_keys" ? issue.keys : undefined;
  const source = [...layers].reverse().find((layer) => valueAt(layer.values, unknownKeys?.[0] === undefined ? path : [...path, unknownKeys[0]]) !== undefined);
  const where = [...path, ...(unknownKeys ?? [])].join(".");
  const value = JSON.stringify(valueAt(merged, unknownKeys?.[0] === undefined ? path : [...path, unknownKeys[0]]));
  throw new PodyardError("InvalidArgument", `${source?.name ?? "settings"}: ${where}: ${value}: ${unknownKeys === undefined ? sentence(issue) : `there is no such setting${allowedKeys(path)}`}`);
}

/**
 * `DATA_DIR/settings.json`, which the app's store writes too. Read here without that store's library, whose exit hook sends
 * a second SIGINT to a process that is about to stop in good order. A file that cannot be read is set aside.
 */
async function storedSettings(dataDirectory: string, logger: Logger): Promise<Record<string, unknown>> {
  const path = join(dataDirectory, "settings.json");
  try {
    const text = await readOptionalFile(path);
    return text === undefined ? {} : z.record(z.string(), z.unknown()).parse(JSON.parse(text));
  } catch (error) {
    const aside = await setAside(path);
    logger.warn(`settings.json cannot be read and was set aside as ${aside}`, { error: messageOf(error) });
    return {};
  }
}

async function readConfigurationFile(path: string): Promise<Record<string, unknown>> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    throw new PodyardError("InvalidArgument", `--config ${path} cannot be read`, { cause: error });
  }
  let value: unknown;
  try {
    value = parse(text);
  } catch (error) {
    throw new PodyardError("InvalidArgument", `${path} is not valid YAML or JSON`, { cause: error });
  }
  if (value === null) return {};
  const result = z.record(z.string(), z.unknown()).safeParse(value);
  if (!result.success) throw new PodyardError("InvalidArgument", `${path}: expected a map of settings at the top, found ${Array.isArray(value) ? "a list" : typeof value}`);
  return result.data;
}

function fromEnvironment(environment: Readonly<Record<string, string | undefined>>): Record<string, unknown> {
  const guest: Record<string, unknown> = {};
  const values: Record<string, unknown> = {};
  const put = (target: Record<string, unknown>, key: string, variable: string, convert: (text: string) => unknown = (text) => text): void => {
    const text = environment[variable];
    if (text !== undefined && text !== "") target[key] = convert(text);
  };
  put(guest, "user", "VZ_SSH_USER");
  put(guest, "password", "VZ_SSH_PASSWORD");
  put(guest, "privateKeyPath", "VZ_SSH_PRIVATE_KEY_PATH");
  put(guest, "passphrase", "VZ_SSH_PRIVATE_KEY_PASSPHRASE");
  put(guest, "keyExchangeAlgorithms", "VZ_SSH_KEX_ALGORITHMS", (text) => text.split(",").map((word) => word.trim()));
  put(guest, "readinessTimeoutSeconds", "VZ_SSH_READINESS_TIMEOUT", seconds);
  put(guest, "postStartTimeoutSeconds", "VZ_POSTSTART_TIMEOUT", seconds);
  if (Object.keys(guest).length > 0) values["guest"] = guest;
  put(values, "kubeletPort", "KUBELET_PORT", Number);
  const key = environment["VKUBELET_TAINT_KEY"];
  const value = environment["VKUBELET_TAINT_VALUE"];
  const effect = environment["VKUBELET_TAINT_EFFECT"];
  if (key !== undefined || value !== undefined || effect !== undefined) values["taint"] = `${key ?? "virtual-kubelet.io/provider"}=${value ?? "macos-vz"}:${effect ?? "NoSchedule"}`;
  return values;
}

/** Go durations as macOS-vz-kubelet takes them (`90s`, `5m`, `1h30m`), or plain seconds. NaN is refused by the schema. */
function seconds(text: string): number {
  const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h)/g)];
  if (parts.length === 0 || parts.map((part) => part[0]).join("") !== text) return Number(text);
  const unit: Readonly<Record<string, number>> = { ms: 0.001, s: 1, m: 60, h: 3600 };
  return Math.ceil(parts.reduce((sum, part) => sum + Number(part[1]) * (unit[part[2] ?? ""] ?? Number.NaN), 0));
}

function merge(under: Record<string, unknown>, over: Record<string, unknown>): Record<string, unknown> {
  const result = { ...under };
  for (const [key, value] of Object.entries(over)) {
    if (value === undefined) continue;
    const below = result[key];
    result[key] = isMap(below) && isMap(value) ? merge(below, value) : value;
  }
  return result;
}

function isMap(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function valueAt(values: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>((value, key) => (Array.isArray(value) ? value[Number(key)] : isMap(value) ? value[key] : undefined), values);
}

function sentence(issue: z.core.$ZodIssue | undefined): string {
  if (issue === undefined) return "is not allowed";
  if (issue.code === "invalid_value") return `expected one of ${issue.values.map(String).join(", ")}`;
  return issue.message;
}

function allowedKeys(path: readonly string[]): string {
  return path.length === 0 ? ` (there are: ${Object.keys(settingsSchema.shape).join(", ")})` : "";
}
