import { describe, expect, test } from "vitest";
import { apiHostOf, formatReference, parseReference } from "./reference.ts";

const digest = `sha256:${"a".repeat(64)}`;

describe("references", () => {
  test.each([
    ["busybox", "docker.io/library/busybox:latest"],
    ["agoda/macos:14", "docker.io/agoda/macos:14"],
    ["index.docker.io/library/busybox", "docker.io/library/busybox:latest"],
    ["localhost/vm", "localhost/vm:latest"],
    ["localhost:5000/vm:v1", "localhost:5000/vm:v1"],
    ["127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"],
    ["[::1]:5000/vm:v1", "[::1]:5000/vm:v1"],
    ["Registry.Example.com/team/vm", "registry.example.com/team/vm:latest"],
    [`ghcr.io/team/vm:v1@${digest}`, `ghcr.io/team/vm@${digest}`],
    [`vm@${digest}`, `docker.io/library/vm@${digest}`],
    ["a.b/c__d/e-f--g.h:T_a-g.1", "a.b/c__d/e-f--g.h:T_a-g.1"],
  ])("%s is %s", (text, normalised) => {
    expect(formatReference(parseReference(text))).toBe(normalised);
    expect(formatReference(parseReference(normalised))).toBe(normalised);
  });

  test.each(["", ":v1", "a/../b", "/a", "a/", "a//b", "a.b/UPPER/case", "vm:", "vm:a b", `vm@sha256:${"a".repeat(63)}`, `vm@sha512:${"a".repeat(128)}`, "host:99999/vm", "http://host/vm", "vm:tag:tag", "-a", "a.b/é", `a/${"x".repeat(300)}`, "vm@", "host:/vm", "vm\n"])(
    "%j is refused with a sentence",
    (text) => {
      expect(() => parseReference(text)).toThrow(expect.objectContaining({ code: "InvalidArgument", message: expect.stringContaining("is not an image reference") }));
    },
  );

  test("Docker Hub's API has a host of its own", () => {
    expect(apiHostOf("docker.io")).toBe("registry-1.docker.io");
    expect(apiHostOf("ghcr.io")).toBe("ghcr.io");
  });
});
