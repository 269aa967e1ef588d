/**
 * `npm test`: types, lint, then every test; ends with one line `N passed, N failed` that counts them all, and prints why
 * a test was skipped. Arguments are passed on to vitest (`npm test -- main/pods`).
 */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dirname, "../..");
const filters = process.argv.slice(2);
const counts = { passed: 0, failed: 0, skipped: 0 };

if (filters.length === 0) {
  await check("types", ["node_modules/typescript/bin/tsc", "-p", "."]);
  await check("lint", ["node_modules/oxlint/bin/oxlint", "--type-aware", "--deny-warnings"]);
}
await tests();
process.stdout.write(`${counts.passed} passed, ${counts.failed} failed${counts.skipped > 0 ? `, ${counts.skipped} skipped` : ""}\n`);
process.exitCode = counts.failed > 0 ? 1 : 0;

async function check(name: string, command: readonly string[]): Promise<void> {
  const code = await run(command);
  process.stdout.write(`${code === 0 ? "ok" : "FAILED"}: ${name}\n`);
  counts[code === 0 ? "passed" : "failed"]++;
}

async function tests(): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "podyard-tests-"));
  try {
    const report = join(directory, "report.json");
    const code = await run(["node_modules/vitest/vitest.mjs", "run", "--reporter=default", "--reporter=json", `--outputFile.json=${report}`, ...filters]);
    const summary = JSON.parse(readFileSync(report, "utf8")) as {
      numPassedTests: number;
      numFailedTests: number;
      numPendingTests: number;
      testResults: readonly { name: string; status: string; assertionResults: readonly { status: string; fullName: string; meta?: { reason?: string } }[] }[];
    };
    counts.passed += summary.numPassedTests;
    counts.skipped += summary.numPendingTests;
    // A file that could not be loaded has no tests that could fail.
    const broken = summary.testResults.filter((file) => file.status === "failed" && file.assertionResults.every((result) => result.status !== "failed")).length;
    counts.failed += summary.numFailedTests + broken;
    if (code !== 0 && counts.failed === 0) counts.failed++;
    for (const file of summary.testResults) {
      for (const result of file.assertionResults) if (result.status === "pending" || result.status === "skipped") process.stdout.write(`skipped: ${result.fullName}\n`);
    }
  } catch (error) {
    process.stdout.write(`FAILED: the tests gave no report: ${String(error)}\n`);
    counts.failed++;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function run(command: readonly string[]): Promise<number> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, command, { cwd: root, stdio: ["ignore", "inherit", "inherit"] });
    child.on("exit", (code) => resolve(code ?? 1));
  });
}
