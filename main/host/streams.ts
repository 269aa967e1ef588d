/** The byte streams of the contract, on the Pods of this host. */
import type { hostApi } from "../contract/host-api.ts";
import { sessionOfDuplex } from "../contract/streams.ts";
import type { StreamHandlers } from "../gateway/protocol.ts";
import type { PodManager } from "../pods/pod-manager.ts";
import { findPod } from "./pod-names.ts";

export function createStreams(pods: PodManager): StreamHandlers<typeof hostApi> {
  const target = (name: string, container?: string) => {
    const pod = findPod(pods.runtime.list(), name);
    const { namespace = "default", name: podName = "", uid } = pod.metadata ?? {};
    return { key: { namespace, name: podName, ...(uid !== undefined && { uid }) }, container: container ?? pod.spec?.containers[0]?.name ?? "" };
  };
  return {
    "vm.exec": (request, { signal }) => {
      const { key, container } = target(request.name, request.container);
      return pods.runtime.exec(key, container, {
        argv: request.argv.map((word) => Buffer.from(word, "base64")),
        stdin: request.stdin,
        signal,
        ...(request.terminal !== undefined && { terminal: request.terminal }),
        ...(request.environment !== undefined && { environment: request.environment }),
        ...(request.workingDirectory !== undefined && { workingDirectory: request.workingDirectory }),
      });
    },
    "vm.attach": (request, { signal }) => {
      const { key, container } = target(request.name, request.container);
      return pods.runtime.attach(key, container, { stdin: request.stdin, stdout: true, stderr: true, signal });
    },
    "vm.console": async ({ name }) => sessionOfDuplex(await pods.runtime.console(target(name).key)),
    "vm.screen": async ({ name }) => sessionOfDuplex(await pods.runtime.screen(target(name).key)),
    "vm.port": async ({ name, port }, { signal }) => sessionOfDuplex(await pods.runtime.dial(target(name).key, port, signal)),
    "vm.logs": async (request, { signal }) => {
      const { key, container } = target(request.name, request.container);
      const log = await pods.runtime.logs(key, container, {
        follow: request.follow,
        previous: request.previous,
        timestamps: request.timestamps,
        signal,
        ...(request.tailLines !== undefined && { tailLines: request.tailLines }),
        ...(request.sinceSeconds !== undefined && { sinceTime: new Date(Date.now() - request.sinceSeconds * 1000) }),
      });
      const ended = new Promise<{ exitCode: number }>((resolve, reject) => {
        log.once("end", () => resolve({ exitCode: 0 }));
        log.once("close", () => resolve({ exitCode: 0 }));
        log.once("error", reject);
      });
      // A rejection is also the stream's own error, which the reader sees; here it must only not go unhandled.
      ended.catch(() => {});
      return { stdin: undefined, stdout: log, stderr: undefined, resize() {}, exit: ended, [Symbol.asyncDispose]: async () => void log.destroy() };
    },
  };
}
