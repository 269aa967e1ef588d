/** Leaves one test cluster running until Ctrl-C: `node test/control-plane/cluster.ts [--address A]`. */
import { parseArgs } from "node:util";
import { startControlPlane } from "./control-plane.ts";

const { values } = parseArgs({ options: { address: { type: "string" } } });
const stopped = Promise.withResolvers<void>();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => stopped.resolve());

const cluster = await startControlPlane(values.address === undefined ? {} : { address: values.address });
try {
  const token = await cluster.createBootstrapToken();
  console.log(`# Kubernetes at ${cluster.server}; Ctrl-C stops it and removes everything`);
  console.log(`# podyard join ${cluster.server} --token ${token} --ca-hash ${cluster.caHash}`);
  console.log(`export KUBECONFIG=${cluster.kubeconfig} PATH=${cluster.programs}:$PATH`);
  // A promise alone does not keep the process alive.
  const keepAlive = setInterval(() => undefined, 60_000);
  await stopped.promise;
  clearInterval(keepAlive);
} finally {
  await cluster[Symbol.asyncDispose]();
}
