/** A pull in a process of its own, for a test to kill: `node pull-child.ts CACHE REFERENCE`. */
import { openStore } from "./fixture.ts";

const [, , cacheDirectory = "", reference = ""] = process.argv;
await using store = await openStore(cacheDirectory);
await store.pull(reference, { policy: "Always", credentials: [] });
