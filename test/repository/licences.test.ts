/** The product ships under Apache-2.0: every package that it brings must allow that. Development tools are not shipped. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const permissive = new Set(["MIT", "ISC", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Unlicense", "BlueOak-1.0.0", "CC0-1.0", "MPL-2.0", "Python-2.0", "(MIT OR CC0-1.0)", "(MIT AND Zlib)", "(BSD-3-Clause OR GPL-2.0)", "MIT-0", "PSF-2.0"]);

interface LockEntry {
  readonly license?: string;
  readonly dev?: boolean;
  readonly devOptional?: boolean;
}

const root = join(import.meta.dirname, "../..");

function licenceOf(path: string, entry: LockEntry): string {
  if (entry.license !== undefined) return entry.license;
  const manifest = JSON.parse(readFileSync(join(root, path, "package.json"), "utf8")) as { license?: string; licenses?: readonly { type: string }[] };
  return manifest.license ?? manifest.licenses?.[0]?.type ?? "none";
}

test("every shipped npm package has a licence that allows shipping it", () => {
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")) as { packages: Readonly<Record<string, LockEntry>> };
  const shipped = Object.entries(lock.packages).filter(([path, entry]) => path !== "" && entry.dev !== true && entry.devOptional !== true);
  expect(shipped.length).toBeGreaterThan(20);
  const refused = shipped.map(([path, entry]) => `${path}: ${licenceOf(path, entry)}`).filter((line) => !permissive.has(line.slice(line.indexOf(": ") + 2)));
  expect(refused).toEqual([]);
});
