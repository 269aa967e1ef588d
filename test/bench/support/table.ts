/** How a benchmark tells its result: a table of texts, and percentiles. */

/** Numbers are shown with three significant digits. */
export type Cell = string | number | undefined;

export function printTable(title: string, columns: readonly string[], rows: readonly (readonly Cell[])[]): void {
  const texts = [columns, ...rows.map((row) => row.map(textOf))];
  const widths = columns.map((_, index) => Math.max(...texts.map((row) => row[index]?.length ?? 0)));
  process.stdout.write(`\n${title}\n\n`);
  for (const row of texts) process.stdout.write(`  ${row.map((text, index) => (index === 0 ? text.padEnd(widths[index] ?? 0) : text.padStart(widths[index] ?? 0))).join("   ")}\n`);
  process.stdout.write("\n");
}

/** `fraction` 0.5 is the median. */
export function percentile(values: readonly number[], fraction: number): number {
  const sorted = values.toSorted((one, other) => one - other);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * fraction))] ?? Number.NaN;
}

function textOf(cell: Cell): string {
  if (cell === undefined) return "–";
  if (typeof cell === "string") return cell;
  return Math.abs(cell) >= 1000 ? cell.toFixed(0) : String(Number(cell.toPrecision(3)));
}
