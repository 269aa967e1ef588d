import { describe, expect, test } from "vitest";
import type { Container, Pod } from "../contract/kubernetes-api.generated.ts";
import { effectiveRequests, machineSize, parseQuantity, qosClass, quantityMilliValue, quantityValue } from "./resources.ts";

const gibibyte = 1024 ** 3;

test.each<[string | number, bigint]>([
  ["1", 1_000_000_000n],
  [2, 2_000_000_000n],
  ["0", 0n],
  ["100m", 100_000_000n],
  ["1.5", 1_500_000_000n],
  [".5", 500_000_000n],
  ["5.", 5_000_000_000n],
  ["1n", 1n],
  ["0.1n", 1n],
  ["3u", 3000n],
  ["1k", 1000n * 10n ** 9n],
  ["1M", 10n ** 15n],
  ["2G", 2n * 10n ** 18n],
  ["1T", 10n ** 21n],
  ["1P", 10n ** 24n],
  ["1E", 10n ** 27n],
  ["1Ki", 1024n * 10n ** 9n],
  ["1.5Mi", 1_572_864n * 10n ** 9n],
  ["4Gi", 4n * 1024n ** 3n * 10n ** 9n],
  ["1Ti", 1024n ** 4n * 10n ** 9n],
  ["1Pi", 1024n ** 5n * 10n ** 9n],
  ["8Ei", 8n * 1024n ** 6n * 10n ** 9n],
  ["1e3", 1000n * 10n ** 9n],
  ["12E-1", 1_200_000_000n],
  ["-2", -2_000_000_000n],
  ["+3", 3_000_000_000n],
])("the quantity %s is exact", (text, nano) => {
  expect(parseQuantity(text)).toBe(nano);
});

test.each(["", "m", "1 Gi", "1gi", "0x10", "1e", "--1", "1Kii", "NaN", ".", "1".repeat(100)])("%j is not a quantity", (text) => {
  expect(() => parseQuantity(text)).toThrow(/is not a quantity/);
});

test("values round up", () => {
  expect([quantityValue("1.1"), quantityValue("100m"), quantityMilliValue("1.0001"), quantityMilliValue("2")]).toEqual([2, 1, 1001, 2000]);
});

describe("the machine's size", () => {
  test.each<[string, "darwin" | "linux", Container["resources"], number, number]>([
    ["macOS's own default", "darwin", undefined, 4, 8 * gibibyte],
    ["Linux's own default", "linux", {}, 1, gibibyte],
    ["limits before requests", "linux", { limits: { cpu: "3", memory: "2Gi" }, requests: { cpu: "1", memory: "1Gi" } }, 3, 2 * gibibyte],
    ["requests without limits", "linux", { requests: { cpu: "2", memory: "512Mi" } }, 2, gibibyte / 2],
    ["whole CPUs, rounded up", "linux", { limits: { cpu: "2500m" } }, 3, gibibyte],
    ["at least one CPU", "linux", { limits: { cpu: "10m" } }, 1, gibibyte],
    ["whole mebibytes, rounded up", "linux", { limits: { memory: "1G" } }, 1, 954 * 1024 * 1024],
    ["zero as not set", "linux", { limits: { cpu: "0", memory: "0" }, requests: { cpu: "2" } }, 2, gibibyte],
  ])("%s", (_, system, resources, cpuCount, memoryBytes) => {
    expect(
      machineSize(
        {
          spec: {
            containers: [
              { name: "vm", ...(resources && { resources }) },
              { name: "c", resources: { limits: { cpu: "9" } } },
            ],
          },
        },
        system,
      ),
    ).toEqual({ cpuCount, memoryBytes });
  });

  test("follows the Pod's own resources when the machine is alone", () => {
    expect(machineSize({ spec: { containers: [{ name: "vm" }], resources: { limits: { cpu: "6", memory: "3Gi" } } } }, "linux")).toEqual({
      cpuCount: 6,
      memoryBytes: 3 * gibibyte,
    });
  });
});

test.each<[string, Pod["spec"], Record<string, number>]>([
  [
    "containers add up",
    {
      containers: [
        { name: "a", resources: { requests: { cpu: "1500m", memory: "1Ki" } } },
        { name: "b", resources: { requests: { cpu: "1", "podyard.dev/vm": "1" } } },
      ],
    },
    { cpu: 2500, memory: 1024, "podyard.dev/vm": 1 },
  ],
  [
    "an init container counts at its peak",
    { initContainers: [{ name: "i", resources: { requests: { cpu: "4" } } }], containers: [{ name: "a", resources: { requests: { cpu: "1" } } }] },
    { cpu: 4000 },
  ],
  [
    "native side-cars count next to both",
    {
      initContainers: [
        { name: "s", restartPolicy: "Always", resources: { requests: { cpu: "1" } } },
        { name: "i", resources: { requests: { cpu: "4" } } },
      ],
      containers: [{ name: "a", resources: { requests: { cpu: "2" } } }],
    },
    { cpu: 5000 },
  ],
  ["a limit stands in for a request", { containers: [{ name: "a", resources: { limits: { memory: "2Ki" } } }] }, { memory: 2048 }],
  ["overhead comes on top", { containers: [{ name: "a", resources: { requests: { cpu: "1" } } }], overhead: { cpu: "250m" } }, { cpu: 1250 }],
  [
    "the Pod's own requests replace the sum",
    { containers: [{ name: "a", resources: { requests: { cpu: "1" } } }], resources: { requests: { cpu: "3" } } },
    { cpu: 3000 },
  ],
])("requests: %s", (_, spec, expected) => {
  expect(effectiveRequests({ ...(spec && { spec }) })).toEqual(expected);
});

test.each<[string, readonly Container["resources"][]]>([
  ["BestEffort", [undefined, {}]],
  ["BestEffort", [{ requests: { "podyard.dev/vm": "1" } }]],
  ["Burstable", [{ requests: { cpu: "1" } }]],
  ["Burstable", [{ limits: { cpu: "1", memory: "1Gi" } }, {}]],
  ["Burstable", [{ limits: { cpu: "2", memory: "1Gi" }, requests: { cpu: "1", memory: "1Gi" } }]],
  ["Guaranteed", [{ limits: { cpu: "1", memory: "1Gi" }, requests: { cpu: "1000m", memory: "1024Mi" } }]],
  ["Guaranteed", [{ limits: { cpu: "1", memory: "1Gi" } }]],
])("%s for %j", (expected, list) => {
  expect(qosClass({ spec: { containers: list.map((resources, index) => ({ name: `c${index}`, ...(resources && { resources }) })) } })).toBe(expected);
});
