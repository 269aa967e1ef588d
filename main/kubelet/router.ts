/** Finds the route for a path. Pure; a request that no route wants is still told apart from one with a wrong method. */
import type { KubeletRoute } from "./http.ts";
import { subresourcesOf } from "./request-attributes.ts";

export interface RouteMatch {
  readonly route: KubeletRoute;
  readonly parameters: Readonly<Record<string, string>>;
}

/** Adds to every route what its path means to the authorizer. */
export function withSubresources(routes: readonly Omit<KubeletRoute, "subresources">[]): readonly KubeletRoute[] {
  return routes.map((route) => ({ ...route, subresources: subresourcesOf(route.pattern.split("/")[1] ?? "") }));
}

/** The first part of a route's pattern that has no parameters, as the label of a metric: `exec`, `metrics/resource`. */
export function metricPathOf(route: KubeletRoute | undefined): string {
  if (route === undefined) return "other";
  return route.pattern
    .split("/")
    .slice(1)
    .filter((segment) => segment !== "" && !segment.startsWith("{"))
    .join("/");
}

/** @param segments of the path, decoded: `/a/b` is ["a", "b"]. A rest parameter holds its segments joined by NUL. */
export function matchRoute(routes: readonly KubeletRoute[], segments: readonly string[]): readonly RouteMatch[] {
  return routes.flatMap((route) => {
    const parameters = matchPattern(route.pattern, segments);
    return parameters === undefined ? [] : [{ route, parameters }];
  });
}

function matchPattern(pattern: string, segments: readonly string[]): Readonly<Record<string, string>> | undefined {
  const parts = pattern.split("/").slice(1);
  const parameters: Record<string, string> = {};
  for (const [index, part] of parts.entries()) {
    const rest = /^\{(\w+)\.\.\.\}$/.exec(part)?.[1];
    if (rest !== undefined) {
      parameters[rest] = segments.slice(index).join("\0");
      return parameters;
    }
    const segment = segments[index];
    if (segment === undefined) return undefined;
    const name = /^\{(\w+)\}$/.exec(part)?.[1];
    if (name === undefined ? part !== segment : segment === "") return undefined;
    if (name !== undefined) parameters[name] = segment;
  }
  return parts.length === segments.length ? parameters : undefined;
}
