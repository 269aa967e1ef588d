import { appendFile, mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { LogRequest } from "../contract/streams.ts";
import { mirrorConsole } from "./console-mirror.ts";
import { logTail, readLog, tailPosition } from "./logs.ts";

let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "podyard-logs-"));
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

const plain: LogRequest = { follow: false, previous: false, timestamps: false };
const lines = [
  "2026-01-01T00:00:01.5Z stdout F one",
  "2026-01-01T00:00:02Z stderr F oops",
  "2026-01-01T00:00:03Z stdout P tw",
  "2026-01-01T00:00:03Z stdout F o",
  "2026-01-01T00:00:04Z stdout F ",
  "2026-01-01T00:00:05Z stdout F a b  c",
].map((line) => `${line}\n`);

async function text(request: Partial<LogRequest>, content: string = lines.join("")): Promise<string> {
  const path = join(directory, "0.log");
  await writeFile(path, content);
  return String(await readLog(path, { ...plain, ...request }, AbortSignal.abort()).toArray().then((chunks: Buffer[]) => Buffer.concat(chunks)));
}

describe("reading a log", () => {
  const table: [string, Partial<LogRequest>, string][] = [
    ["everything, cut lines joined", {}, "one\noops\ntwo\n\na b  c\n"],
    ["the last line", { tailLines: 1 }, "a b  c\n"],
    ["a cut line counts as one", { tailLines: 3 }, "two\n\na b  c\n"],
    ["more lines than there are", { tailLines: 99 }, "one\noops\ntwo\n\na b  c\n"],
    ["no lines", { tailLines: 0 }, ""],
    ["since a time", { sinceTime: new Date("2026-01-01T00:00:03Z") }, "two\n\na b  c\n"],
    ["with times, one per line", { timestamps: true, tailLines: 3 }, "2026-01-01T00:00:03Z two\n2026-01-01T00:00:04Z \n2026-01-01T00:00:05Z a b  c\n"],
    ["limited in bytes", { limitBytes: 6 }, "one\noo"],
    ["one stream", { stream: "Stderr" }, "oops\n"],
  ];
  it.each(table)("%s", async (_name, request, expected) => {
    expect(await text(request)).toBe(expected);
  });

  it("finds the tail of a file much larger than a block, like reading it forwards", async () => {
    const many = Array.from({ length: 5000 }, (_, index) => `2026-01-01T00:00:01Z stdout ${index % 7 === 3 ? "P" : "F"} ${"x".repeat(index % 97)}-${index}\n`);
    const path = join(directory, "large.log");
    await writeFile(path, many.join(""));
    await using file = await open(path);
    for (const tailLines of [1, 2, 10, 1000, 4000]) {
      let found = 0;
      let first = many.length;
      while (first > 0 && !(found === tailLines && !(many[first - 1] ?? "").includes(" P "))) {
        first--;
        if ((many[first] ?? "").includes(" F ")) found++;
        if (found > tailLines) throw new Error("unreachable");
      }
      expect(await tailPosition(file, tailLines)).toBe(Buffer.byteLength(many.slice(0, first).join("")));
    }
  });

  it("follows lines that come later and ends with the container", async () => {
    const path = join(directory, "follow.log");
    const ended = new AbortController();
    const stream = readLog(path, { ...plain, follow: true }, ended.signal);
    const received: string[] = [];
    const done = new Promise<void>((resolve) => stream.on("end", resolve));
    stream.on("data", (chunk: Buffer) => {
      received.push(String(chunk));
      if (received.join("") === "one\n") void appendFile(path, `${lines[1]}${lines[2]}`).then(() => appendFile(path, lines[3] ?? "")).then(() => ended.abort());
    });
    await writeFile(path, lines[0] ?? "");
    await done;
    expect(received.join("")).toBe("one\noops\ntwo\n");
  });

  it("gives the tail for a termination message within its bytes", async () => {
    const path = join(directory, "tail.log");
    await writeFile(path, lines.join(""));
    expect(await logTail(path, 80, 8)).toBe("\na b  c\n");
  });
});

describe("mirroring a console", () => {
  it("neither loses nor doubles a byte when it is interrupted anywhere, even inside a record", async () => {
    const source = join(directory, "console.log");
    const target = join(directory, "0.log");
    const content = `boot\r\n${"y".repeat(40_000)}\n\nlogin: `;
    await writeFile(source, content);
    await mirrorConsole(source, target, AbortSignal.abort());
    const whole = await readFile(target);
    for (const length of [0, 5, 30, 33, 100, 20_000, whole.length - 3]) {
      await writeFile(target, whole.subarray(0, length));
      await mirrorConsole(source, target, AbortSignal.abort());
      const read = String(await readLog(target, plain, AbortSignal.abort()).toArray().then((chunks: Buffer[]) => Buffer.concat(chunks)));
      expect(read).toBe(`${content}\n`);
    }
  });
});
