import { describe, expect, it } from "vitest";
import type { PodStatus } from "../contract/kubernetes-api.generated.ts";
import { podStatusPatch } from "./pod-status-patch.ts";

const at = "2026-01-01T00:00:00Z";
const base: PodStatus = {
  phase: "Running",
  podIP: "10.0.0.1",
  podIPs: [{ ip: "10.0.0.1" }],
  startTime: at,
  conditions: [
    { type: "PodScheduled", status: "True" },
    { type: "Ready", status: "True", lastTransitionTime: at },
    { type: "example.com/gate", status: "True" },
  ],
};
const ours = (change: Partial<PodStatus> = {}): PodStatus => ({ ...base, conditions: [{ type: "Ready", status: "True", lastTransitionTime: at }], ...change });

describe("the patch of a Pod's status", () => {
  it("is none when nothing differs, whatever others have added", () => {
    expect(podStatusPatch("u", base, ours())).toBeUndefined();
    expect(podStatusPatch("u", { ...base, resourceClaimStatuses: [{ name: "c" }], nominatedNodeName: "n" }, ours())).toBeUndefined();
  });

  it("carries the UID and only what changed", () => {
    expect(podStatusPatch("u", base, ours({ reason: "Evicted" }))).toEqual({ metadata: { uid: "u" }, status: { reason: "Evicted" } });
  });

  it("unsets what is ours and gone, never the start time", () => {
    const { startTime: _, ...withoutStart } = ours();
    expect(podStatusPatch("u", { ...base, message: "old" }, withoutStart)).toEqual({ metadata: { uid: "u" }, status: { message: null } });
  });

  it("replaces addresses, which a merge would collect", () => {
    expect(podStatusPatch("u", base, ours({ podIP: "10.0.0.2", podIPs: [{ ip: "10.0.0.2" }] }))).toMatchObject({ status: { podIP: "10.0.0.2", podIPs: [{ $patch: "replace" }, { ip: "10.0.0.2" }] } });
    const { podIP: _, podIPs: __, ...without } = ours();
    expect(podStatusPatch("u", base, without)).toMatchObject({ status: { podIP: null, podIPs: [{ $patch: "replace" }] } });
  });

  it("repairs a condition of ours that somebody changed, with the reason cleared", () => {
    const flipped = { ...base, conditions: [{ type: "Ready", status: "False", reason: "NodeNotReady", lastTransitionTime: at }] };
    expect(podStatusPatch("u", flipped, ours())).toMatchObject({ status: { conditions: [{ type: "Ready", status: "True", reason: null }] } });
  });

  it("removes a resize condition that is over, and no condition of others", () => {
    const current = { ...base, conditions: [...(base.conditions ?? []), { type: "PodResizePending", status: "True" }, { type: "DisruptionTarget", status: "True" }] };
    expect(podStatusPatch("u", current, ours())).toEqual({ metadata: { uid: "u" }, status: { conditions: [{ type: "PodResizePending", $patch: "delete" }] } });
  });
});
