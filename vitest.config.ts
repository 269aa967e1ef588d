import { defineConfig } from "vitest/config";

/** `unit` needs one process; `e2e` needs the world (VMs, Docker, root, a cluster) and runs one file at a time. */
export default defineConfig({
  test: {
    projects: [
      { test: { name: "unit", include: ["main/**/*.test.ts", "renderer/**/*.test.{ts,tsx}", "test/**/*.test.ts"], exclude: ["**/*.e2e.test.ts", "**/node_modules/**"], testTimeout: 20_000 } },
      { test: { name: "e2e", include: ["main/**/*.e2e.test.ts", "test/**/*.e2e.test.ts"], testTimeout: 180_000, hookTimeout: 300_000, fileParallelism: false, sequence: { groupOrder: 1 } } },
    ],
  },
});
