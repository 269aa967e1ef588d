/** The page's files, with the headers that hold it to itself. Nothing outside the directory is served, not by links either. */
import { createReadStream } from "node:fs";
import { realpath, stat } from "node:fs/promises";
import type { ServerResponse } from "node:http";
import { extname, join, sep } from "node:path";
import { pipeline } from "node:stream/promises";

const types: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
  ".png": "image/png",
  ".ico": "image/x-icon",
  ".woff2": "font/woff2",
  ".json": "application/json",
  ".map": "application/json",
  ".txt": "text/plain; charset=utf-8",
  ".wasm": "application/wasm",
};

/** For every answer. `connect-src` names the WebSocket address too: not every browser takes it for 'self'. */
export function securityHeaders(host: string | undefined): Record<string, string> {
  const sockets = host === undefined ? "" : ` ws://${host}`;
  return {
    "content-security-policy": `default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; connect-src 'self'${sockets}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
  };
}

/** False if there is no such file. */
export async function servePage(directory: string, path: string, response: ServerResponse, withBody: boolean): Promise<boolean> {
  const file = await findFile(directory, path === "/" ? "/index.html" : path);
  if (file === undefined) return false;
  const type = types[extname(file.path)];
  if (type === undefined) return false;
  // Built files carry a hash in their names; the page itself does not.
  response.writeHead(200, {
    "content-type": type,
    "content-length": file.size,
    "cache-control": extname(file.path) === ".html" ? "no-store" : "private, max-age=3600",
  });
  if (withBody) await pipeline(createReadStream(file.path), response).catch(() => response.destroy());
  else response.end();
  return true;
}

async function findFile(directory: string, path: string): Promise<{ readonly path: string; readonly size: number } | undefined> {
  try {
    const root = await realpath(directory);
    const found = await realpath(join(root, decodeURIComponent(path)));
    if (!found.startsWith(root + sep)) return undefined;
    const status = await stat(found);
    return status.isFile() ? { path: found, size: status.size } : undefined;
  } catch {
    return undefined;
  }
}
