/**
 * Gives a machine's serial console the times that its raw file lacks: copies it into the container's log in the CRI
 * format as it grows. How much was copied follows from the log itself (content plus a newline per ended line), so a host
 * that was killed in between neither loses nor doubles a byte.
 */
import { type FileHandle, open } from "node:fs/promises";
import { formatRecord, parseRecord } from "./log-lines.ts";
import { watchFile } from "./logs.ts";

const BLOCK = 64 * 1024;
/** Longer lines are cut into partial records. */
const LONGEST_LINE = 16 * 1024;
const NEWLINE = 0x0a;

/** Copies until `ended` aborts and the console was read to its end. Resumes where the log stops. */
export async function mirrorConsole(consolePath: string, logPath: string, ended: AbortSignal): Promise<void> {
  await using log = await open(logPath, "a+", 0o600);
  let position = await copiedBytes(log);
  await using watcher = watchFile(consolePath);
  let source: FileHandle | undefined;
  let rest: Buffer = Buffer.alloc(0);
  try {
    for (;;) {
      const last = ended.aborted;
      source ??= await open(consolePath, "r").catch(() => undefined);
      const buffer = Buffer.allocUnsafe(BLOCK);
      const bytesRead = source === undefined ? 0 : (await source.read(buffer, 0, BLOCK, position)).bytesRead;
      if (bytesRead > 0) {
        position += bytesRead;
        rest = Buffer.concat([rest, buffer.subarray(0, bytesRead)]);
        const { records, rest: kept } = cut(rest, new Date());
        rest = kept;
        if (records.length > 0) await log.appendFile(Buffer.concat(records));
        continue;
      }
      if (last) {
        if (rest.length > 0) await log.appendFile(formatRecord(new Date().toISOString(), "stdout", false, rest));
        return;
      }
      await watcher.changed(ended);
    }
  } finally {
    await source?.close();
  }
}

function cut(text: Buffer, now: Date): { readonly records: Buffer[]; readonly rest: Buffer } {
  const records: Buffer[] = [];
  const time = now.toISOString();
  let start = 0;
  for (;;) {
    const newline = text.indexOf(NEWLINE, start);
    const end = newline < 0 ? text.length : newline;
    if (end - start > LONGEST_LINE) {
      records.push(formatRecord(time, "stdout", true, text.subarray(start, start + LONGEST_LINE)));
      start += LONGEST_LINE;
      continue;
    }
    if (newline < 0) return { records, rest: Buffer.from(text.subarray(start)) };
    records.push(formatRecord(time, "stdout", false, text.subarray(start, newline)));
    start = newline + 1;
  }
}

/** How many bytes of the console the log holds; cuts off a record that a crash tore. */
async function copiedBytes(log: FileHandle): Promise<number> {
  const { size } = await log.stat();
  const buffer = Buffer.allocUnsafe(BLOCK);
  let rest: Buffer = Buffer.alloc(0);
  let copied = 0;
  let whole = 0;
  for (let position = 0; position < size; ) {
    const { bytesRead } = await log.read(buffer, 0, BLOCK, position);
    if (bytesRead === 0) break;
    position += bytesRead;
    rest = Buffer.concat([rest, buffer.subarray(0, bytesRead)]);
    let start = 0;
    for (let end = rest.indexOf(NEWLINE); end >= 0; end = rest.indexOf(NEWLINE, start)) {
      const record = parseRecord(rest.subarray(start, end));
      if (record !== undefined) copied += record.content.length + (record.partial ? 0 : 1);
      whole += end + 1 - start;
      start = end + 1;
    }
    rest = Buffer.from(rest.subarray(start));
  }
  if (whole < size) await log.truncate(whole);
  return copied;
}
