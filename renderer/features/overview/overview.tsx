/** The node at a glance: whether it is ready and why not, its virtual machines, its images. Live by events, not polling. */
import { useCallback, useEffect, useState } from "react";
import type { HostInfo, ImageReport, MachineReport, NodeStatusReport } from "../../../main/contract/host-api.ts";
import type { HostClient } from "../../client/host-client.ts";

interface Snapshot {
  readonly info: HostInfo;
  readonly node: NodeStatusReport;
  readonly machines: readonly MachineReport[];
  readonly images: readonly ImageReport[];
}

export function Overview({ host }: { readonly host: HostClient }) {
  const [snapshot, setSnapshot] = useState<Snapshot>();
  const [failure, setFailure] = useState<string>();
  const refresh = useCallback(() => {
    Promise.all([host.call("host.info", {}), host.call("node.status", {}), host.call("vm.list", {}), host.call("image.list", {})]).then(
      ([info, node, machines, images]) => {
        setSnapshot({ info, node, machines: machines.items, images: images.items });
        setFailure(undefined);
      },
      (error: unknown) => setFailure(error instanceof Error ? error.message : String(error)),
    );
  }, [host]);
  useEffect(() => {
    let pending: ReturnType<typeof setTimeout> | undefined;
    const soon = (): void => {
      clearTimeout(pending);
      pending = setTimeout(refresh, 200);
    };
    refresh();
    const stop = host.subscribe(
      (event) => (event.kind === "image" ? undefined : soon()),
      (connected) => (connected ? soon() : setFailure("The host does not answer. Trying again…")),
    );
    return () => {
      clearTimeout(pending);
      stop();
    };
  }, [host, refresh]);

  return (
    <main>
      <h1>Podyard</h1>
      {failure === undefined ? null : <p role="alert">{failure}</p>}
      {snapshot === undefined ? <p>Asking the host…</p> : <Node snapshot={snapshot} />}
    </main>
  );
}

function Node({ snapshot: { info, node, machines, images } }: { readonly snapshot: Snapshot }) {
  return (
    <>
      <section aria-labelledby="node">
        <h2 id="node">{node.name}</h2>
        <p>
          <strong>{node.ready ? "Ready" : "Not ready"}</strong> · {node.message === "" ? node.reason : node.message}
        </p>
        <p>
          {node.mode === "cluster" ? `Node of ${node.server ?? "a cluster"}` : "Standalone, without a cluster"} · {info.driver.name} {info.driver.version} on{" "}
          {info.driver.operatingSystem}/{info.driver.architecture} ({info.driver.accelerator}) · version {info.version}
        </p>
        {node.problems.length === 0 ? null : (
          <ul aria-label="Problems">
            {node.problems.map((problem) => (
              <li key={problem.type}>
                {problem.message} <code>{problem.fix}</code>
              </li>
            ))}
          </ul>
        )}
      </section>
      <section aria-labelledby="machines">
        <h2 id="machines">
          Virtual machines ({machines.length} of {info.maximumMachines})
        </h2>
        {machines.length === 0 ? (
          <p>None is running.</p>
        ) : (
          <table>
            <thead>
              <tr>
                <th scope="col">Pod</th>
                <th scope="col">State</th>
                <th scope="col">Address</th>
                <th scope="col">Image</th>
                <th scope="col">Restarts</th>
              </tr>
            </thead>
            <tbody>
              {machines.map((machine) => (
                <tr key={machine.podUid}>
                  <td>{machine.name}</td>
                  <td>{machine.ready ? "Ready" : machine.state}</td>
                  <td>{machine.podIP ?? "–"}</td>
                  <td>{machine.image}</td>
                  <td className="number">{machine.restartCount}</td>
                </tr>
              ))}
            </tbody>
          </table>
        )}
      </section>
      <section aria-labelledby="images">
        <h2 id="images">Images</h2>
        {images.length === 0 ? (
          <p>None is cached.</p>
        ) : (
          <ul>
            {images.map((image) => (
              <li key={image.digest}>
                {image.references[0] ?? image.digest} · {(image.sizeOnDisk / 2 ** 20).toFixed(0)} MiB on disk
              </li>
            ))}
          </ul>
        )}
      </section>
    </>
  );
}
