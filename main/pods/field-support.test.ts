/** The table of fields is whole, the documentation is made from it, and what it promises is shown by a test. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { containerFields, ephemeralContainerFields, findFieldRow, initContainerFields, podFields, supportTests } from "./field-support.ts";
import { podFieldPaths, podSupportDocument, podSupportPath } from "./generate-pod-support.ts";

const endToEnd = join(import.meta.dirname, "../../test/e2e");

test("every field of PodSpec is classified", () => {
  const unclassified = podFieldPaths().filter((path) => findFieldRow(path) === undefined);
  expect(podFieldPaths().length).toBeGreaterThan(800);
  expect(unclassified).toEqual([]);
});

test("every row covers a field that exists", () => {
  const covers = (prefix: string, path: string): boolean =>
    podFieldPaths().some((field) => field.startsWith(prefix + path) && ["", ".", "[", "{"].includes(field.charAt((prefix + path).length)));
  const stale = [
    ...podFields.filter(({ path }) => !covers("", path)),
    ...containerFields.filter(({ path }) => !covers("containers[].", path)),
    ...initContainerFields.filter(({ path }) => !covers("initContainers[].", path)),
    ...ephemeralContainerFields.filter(({ path }) => !covers("ephemeralContainers[].", path)),
  ].map(({ path }) => path);
  expect(stale).toEqual([]);
});

test("no path has two rows", () => {
  for (const rows of [podFields, containerFields, initContainerFields, ephemeralContainerFields])
    expect(new Set(rows.map(({ path }) => path)).size).toBe(rows.length);
});

test("the longest row counts", () => {
  expect(findFieldRow("volumes[].emptyDir.medium")?.path).toBe("volumes[].emptyDir.medium");
  expect(findFieldRow("volumes[].configMap.items[].mode")?.path).toBe("volumes[].configMap");
  expect(findFieldRow("containers[].restartPolicyRules[].exitCodes.operator")?.path).toBe("restartPolicyRules");
  expect(findFieldRow("initContainers[].restartPolicy")).not.toBe(findFieldRow("containers[].restartPolicy"));
  expect(findFieldRow("somethingNew")).toBeUndefined();
});

test("docs/pod-support.md is up to date (node main/pods/generate-pod-support.ts)", () => {
  expect(readFileSync(podSupportPath, "utf8")).toBe(podSupportDocument());
});

describe("every promise is shown by an end-to-end test", () => {
  const titlesOf = (file: string): readonly string[] => {
    const path = join(endToEnd, file);
    return existsSync(path)
      ? [...readFileSync(path, "utf8").matchAll(/\b(?:test|it)(?:\.\w+(?:\([^)]*\))?)*\(\s*(["'`])(.*?)\1/g)].map((match) => match[2] ?? "")
      : [];
  };

  test.each(supportTests())("$file: $title", ({ file, title }) => {
    expect(titlesOf(file)).toContain(title);
  });

  test("and no end-to-end test is named without a promise", () => {
    const rows = [...podFields, ...containerFields, ...initContainerFields, ...ephemeralContainerFields];
    const used = new Set(rows.flatMap(({ machine, sideCar }) => [machine, sideCar]).flatMap((support) => (support.kind === "honoured" ? [support.test] : [])));
    expect(supportTests().filter((named) => !used.has(named))).toEqual([]);
  });
});
