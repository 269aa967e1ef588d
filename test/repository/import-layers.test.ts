/**
 * Keeps the import table of docs/architecture.md: a folder below main/ is a layer and imports point one way. Reads the
 * import statements of every source file; tests may import what they test with.
 */
import { readFileSync, readdirSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { expect, test } from "vitest";

const root = join(import.meta.dirname, "../..");

/** Layer → layers it may import. A path ending in .ts allows that one file (an interface) of a layer. */
const allowed: Readonly<Record<string, readonly string[]>> = {
  contract: [],
  records: ["contract"],
  images: ["contract", "records"],
  containers: ["contract", "records"],
  "virtual-machines": ["contract", "records"],
  kubernetes: ["contract", "records"],
  settings: ["contract", "records"],
  pods: ["contract", "records", "images/image-store.ts", "containers/container-engine.ts", "virtual-machines/virtual-machine.ts", "virtual-machines/guest.ts", "kubernetes/cluster.ts"],
  kubelet: ["contract", "pods"],
  diagnostics: ["contract", "pods"],
  gateway: ["contract", "records"],
  host: ["contract", "records", "images", "containers", "virtual-machines", "kubernetes", "settings", "pods", "kubelet", "diagnostics", "gateway"],
  cli: ["contract", "gateway", "settings", "host", "images", "kubernetes"],
  desktop: ["contract", "host", "gateway", "settings"],
};
/** The command line reaches below the contract only in these files; everything else of it talks to the host. */
const cliExceptions: Readonly<Record<string, readonly string[]>> = {
  host: ["main/cli/commands/run.ts"],
  kubernetes: ["main/cli/commands/join.ts"],
  images: ["main/cli/credentials.ts"],
};
const onlyIn: readonly { readonly module: RegExp; readonly folder: string }[] = [
  { module: /^electron($|\/)/, folder: "main/desktop/" },
  { module: /^electron-store$/, folder: "main/desktop/" },
];

const sources = readdirSync(root, { recursive: true, encoding: "utf8" })
  .filter((path) => /^(main|renderer)\/.*\.tsx?$/.test(path) && !/\.test\.tsx?$/.test(path))
  .map((path) => ({ path, imports: importsOf(readFileSync(join(root, path), "utf8")) }));

function importsOf(text: string): readonly string[] {
  const statements = text.matchAll(/^\s*(?:import|export)\s[^;]*?from\s*"([^"]+)"|^\s*import\s*"([^"]+)"|\bimport\(\s*"([^"]+)"\s*\)/gm);
  return [...statements].flatMap((match) => match[1] ?? match[2] ?? match[3] ?? []);
}

function forbiddenArrows(): readonly string[] {
  const arrows: string[] = [];
  for (const { path, imports } of sources) {
    for (const imported of imports) {
      for (const rule of onlyIn) if (rule.module.test(imported) && !path.startsWith(rule.folder)) arrows.push(`${path} -> ${imported} (only ${rule.folder} may import it)`);
      if (!imported.startsWith(".")) continue;
      const target = relative(root, join(root, dirname(path), imported));
      const [, from = ""] = /^main\/([^/]+)\//.exec(path) ?? [];
      const [, to = ""] = /^main\/([^/]+)\//.exec(target) ?? [];
      if (path.startsWith("renderer/")) {
        if (to !== "" && to !== "contract") arrows.push(`${path} -> ${target} (the renderer may import main/contract only)`);
        continue;
      }
      if (from === "" || from === to) continue;
      const rules = allowed[from] ?? [];
      const exceptions = from === "cli" ? cliExceptions[to] : undefined;
      const open = rules.some((rule) => target === `main/${rule}` || (!rule.endsWith(".ts") && rule === to)) && (exceptions?.includes(path) ?? true);
      if (!open) arrows.push(`${path} -> ${target} (main/${from} may import ${rules.join(", ") || "nothing"})`);
    }
  }
  return arrows;
}

test("imports between the layers point only where the table allows", () => {
  expect(forbiddenArrows()).toEqual([]);
});

test("every folder below main/ is a layer of the table", () => {
  const folders = readdirSync(join(root, "main"), { withFileTypes: true }).filter((entry) => entry.isDirectory());
  expect(folders.map((entry) => entry.name).filter((name) => !Object.hasOwn(allowed, name))).toEqual([]);
});

test("the table is read from real imports", () => {
  expect(sources.length).toBeGreaterThan(50);
  expect(sources.find((source) => source.path === "main/cli/program.ts")?.imports).toContain("../contract/errors.ts");
});
