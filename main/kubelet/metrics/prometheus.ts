/**
 * The Prometheus text format. Labels are written in the order given: some readers take a label by its position.
 * https://prometheus.io/docs/instrumenting/exposition_formats/
 */
export const prometheusContentType = "text/plain; version=0.0.4; charset=utf-8";

export interface MetricFamily {
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge" | "histogram" | "untyped";
  readonly samples: readonly MetricSample[];
}

export interface MetricSample {
  /** `_bucket`, `_sum` or `_count` of a histogram. */
  readonly suffix?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly value: number;
  /** When it was measured; left out = now. */
  readonly time?: Date;
}

/** Families without samples are left out. */
export function formatMetrics(families: readonly MetricFamily[]): string {
  return families
    .filter((family) => family.samples.length > 0)
    .map((family) => {
      const help = family.help.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
      return [`# HELP ${family.name} ${help}`, `# TYPE ${family.name} ${family.type}`, ...family.samples.map((sample) => formatSample(family.name, sample)), ""].join("\n");
    })
    .join("");
}

function formatSample(name: string, sample: MetricSample): string {
  const labels = Object.entries(sample.labels ?? {}).map(([label, value]) => `${label}="${escapeLabel(value)}"`);
  const time = sample.time === undefined ? "" : ` ${sample.time.getTime()}`;
  return `${name}${sample.suffix ?? ""}${labels.length === 0 ? "" : `{${labels.join(",")}}`} ${formatValue(sample.value)}${time}`;
}

function formatValue(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "+Inf" : "-Inf";
  return String(value);
}

function escapeLabel(value: string): string {
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
