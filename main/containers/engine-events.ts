/**
 * Watches the engine's event stream for our containers, for as long as asked: a lost connection is made again with
 * back-off, and then every Pod we know of is reported, since events may have been missed.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Readable } from "node:stream";
import { z } from "zod";
import { messageOf } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import type { ContainersOfHost } from "./containers-of-host.ts";
import { label, labelFilter } from "./container-labels.ts";
import type { EngineClient } from "./engine-client.ts";

const eventSchema = z.object({ Action: z.string(), Actor: z.object({ Attributes: z.record(z.string(), z.string()) }) });

interface EventsContext {
  readonly docker: EngineClient;
  readonly hostId: string;
  readonly containers: ContainersOfHost;
  readonly logger: Logger;
}

const actions = ["start", "die", "oom", "kill", "stop", "pause", "unpause", "destroy"];

export function watchEngine(context: EventsContext, onChange: (podUid: string) => void): AsyncDisposable {
  const stop = new AbortController();
  const finished = run(context, onChange, stop.signal);
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await finished;
    },
  };
}

async function run(context: EventsContext, onChange: (podUid: string) => void, signal: AbortSignal): Promise<void> {
  let pause = 200;
  let connectedBefore = false;
  while (!signal.aborted) {
    try {
      const filters = JSON.stringify({ type: ["container"], label: labelFilter(context.hostId), event: actions });
      const stream = await context.docker.open({ method: "GET", path: "/events", query: { filters }, signal });
      const close = (): void => void stream.destroy();
      signal.addEventListener("abort", close, { once: true });
      try {
        // The stream is open before the list is asked for, so nothing falls in between.
        if (connectedBefore) {
          context.logger.info("the Docker engine is back");
          for (const podUid of new Set((await context.containers.list()).map(({ info }) => info.podUid))) onChange(podUid);
        }
        connectedBefore = true;
        pause = 200;
        await readEvents(stream, onChange);
      } finally {
        signal.removeEventListener("abort", close);
        stream.destroy();
      }
    } catch (error) {
      if (signal.aborted) return;
      // Once for each time that it goes away, not for each attempt to find it again.
      context.logger[pause === 200 ? "warn" : "debug"]("lost the Docker engine's events", { error: messageOf(error) });
    }
    connectedBefore = true;
    await delay(pause, undefined, { signal }).catch(() => undefined);
    pause = Math.min(pause * 2, 5000);
  }
}

async function readEvents(stream: Readable, onChange: (podUid: string) => void): Promise<void> {
  let rest = "";
  const decoder = new TextDecoder();
  for await (const chunk of stream) {
    rest += decoder.decode(chunk, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line.trim() === "") continue;
      const event = eventSchema.safeParse(JSON.parse(line));
      const podUid = event.success ? event.data.Actor.Attributes[label.podUid] : undefined;
      if (podUid !== undefined) onChange(podUid);
    }
  }
}
