import { describe, expect, test } from "vitest";
import { HttpError } from "./http.ts";
import { parseLogOptions } from "./log-options.ts";
import { Query } from "./query.ts";

const now = new Date("2026-01-02T03:04:05Z");
const none = { follow: false, previous: false, timestamps: false };

describe("log options", () => {
  test.each([
    ["", none],
    ["follow=true&previous=1&timestamps", { follow: true, previous: true, timestamps: true }],
    ["follow=false&previous=0&timestamps=False", none],
    ["tailLines=0", { ...none, tailLines: 0 }],
    ["tail=5&tailLines=9", { ...none, tailLines: 5 }],
    ["tail=all&tailLines=9", none],
    ["limitBytes=1", { ...none, limitBytes: 1 }],
    ["sinceSeconds=65", { ...none, sinceTime: new Date("2026-01-02T03:03:00Z") }],
    ["sinceTime=2026-01-01T01:00:00.5%2B01:00", { ...none, sinceTime: new Date("2026-01-01T00:00:00.500Z") }],
    ["sinceTime=", none],
    ["stream=Stderr", { ...none, stream: "Stderr" }],
    ["stream=All&tailLines=3", { ...none, stream: "All", tailLines: 3 }],
  ])("%s", (query, expected) => {
    expect(parseLogOptions(new Query(query), now)).toEqual(expected);
  });

  test.each(["tailLines=x", "tailLines=", "tail=some", "limitBytes=1.5", "sinceSeconds=1h", "sinceTime=yesterday", "sinceTime=2026-01-01"])("%s cannot be decoded", (query) => {
    expect(errorOf(query)).toEqual([400, '{"message": "Unable to decode query."}']);
  });

  test.each(["tailLines=-1", "limitBytes=0", "sinceSeconds=0", "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", "stream=stdin", "stream=Stdout&tailLines=1"])("%s is invalid", (query) => {
    expect(errorOf(query)).toEqual([422, '{"message": "Invalid request."}']);
  });
});

function errorOf(query: string): readonly unknown[] {
  try {
    parseLogOptions(new Query(query), now);
  } catch (error) {
    if (error instanceof HttpError) return [error.status, error.message];
  }
  return [];
}
