/** exec through the API server with arguments as bytes, which kubectl's own flags cannot carry: v4.channel.k8s.io WebSocket. */
import { readFile } from "node:fs/promises";
import { WebSocket } from "ws";
import type { ControlPlane } from "../control-plane/control-plane.ts";

/** The process's stdout. `path` is the API path with its percent-encoded query. Rejects unless the process ended with 0. */
export async function rawExec(cluster: ControlPlane, path: string): Promise<Buffer> {
  const admin = cluster.certificates.issueClient({ commonName: "kubernetes-admin", organizations: ["system:masters"] });
  const socket = new WebSocket(`${cluster.server.replace(/^http/, "ws")}${path}`, "v4.channel.k8s.io", {
    ca: await readFile(cluster.certificates.path("ca.crt")),
    cert: admin.certificate,
    key: admin.key,
  });
  const stdout: Buffer[] = [];
  return new Promise((resolve, reject) => {
    let status = "";
    socket.on("message", (data: Buffer) => {
      if (data[0] === 1) stdout.push(data.subarray(1));
      if (data[0] === 3) status += data.subarray(1).toString();
    });
    socket.on("unexpected-response", (_request, response) => reject(new Error(`exec: ${response.statusCode}`)));
    socket.on("error", reject);
    socket.on("close", () => (status.includes('"Success"') ? resolve(Buffer.concat(stdout)) : reject(new Error(`exec: ${status}`))));
  });
}
