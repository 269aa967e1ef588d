/**
 * /logs/: the node's log directory, as `kubectl get --raw /api/v1/nodes/NAME/proxy/logs/` shows it: a list of links for a
 * directory, the bytes for a file. Symbolic links may not lead out of it; only regular files are served (a pipe would block).
 */
import { constants } from "node:fs";
import { open, readdir, realpath } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { join, sep } from "node:path";
import { pipeline } from "node:stream/promises";
import { HttpError, sendText } from "../http.ts";
import type { KubeletRoute, RequestContext } from "../http.ts";

/** Without a directory the path is 404. */
export function nodeLogRoutes(directory: string | undefined): readonly Omit<KubeletRoute, "subresources">[] {
  return [{ methods: ["GET"], pattern: "/logs/{path...}", isLongRunning: false, handle: (context) => sendNodeLog(directory, context) }];
}

async function sendNodeLog(directory: string | undefined, { parameters, response }: RequestContext): Promise<void> {
  const segments = (parameters["path"] ?? "").split("\0").filter((segment) => segment !== "");
  if (directory === undefined || segments.some((segment) => segment === ".." || segment === "." || /[/\\]/.test(segment))) throw notFound();
  const root = await realpath(directory).catch(() => undefined);
  const path = await realpath(join(directory, ...segments)).catch(() => undefined);
  if (root === undefined || path === undefined || (path !== root && !path.startsWith(root + sep))) throw notFound();

  await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW).catch((): FileHandle => {
    throw notFound();
  });
  const status = await file.stat();
  if (status.isDirectory()) {
    sendText(response, listing(await readdir(path, { withFileTypes: true })), "text/html; charset=utf-8");
    return;
  }
  if (!status.isFile()) throw notFound();
  // A log grows while it is read: no more than was announced is sent.
  response.writeHead(200, { "Content-Type": "text/plain; charset=utf-8", "Content-Length": status.size, "X-Content-Type-Options": "nosniff" });
  if (status.size === 0) response.end();
  else await pipeline(file.createReadStream({ autoClose: false, start: 0, end: status.size - 1 }), response);
}

function listing(entries: readonly { readonly name: string; isDirectory(): boolean }[]): string {
  const names = entries.map((entry) => (entry.isDirectory() ? `${entry.name}/` : entry.name)).sort();
  return `<pre>\n${names.map((name) => `<a href="${encodeURI(name).replaceAll("?", "%3F").replaceAll("#", "%23")}">${escapeHtml(name)}</a>\n`).join("")}</pre>\n`;
}

function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&#34;");
}

function notFound(): HttpError {
  return new HttpError(404, "404 page not found\n");
}
