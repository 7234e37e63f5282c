// The tree that the hops of a request are.

import type { Decision } from "./api.ts";

/** How far down the tree of calls each hop is. */
export function depths(hops: Decision[]): number[] {
  const byName = new Map(hops.map((hop) => [hop.hop, hop]));
  return hops.map((hop) => {
    const seen = new Set<Decision>();
    let at: Decision | undefined = hop;
    // It ends also where somebody says that he called himself.
    while (at?.parent && !seen.has(at)) {
      seen.add(at);
      at = byName.get(at.parent);
    }
    return at && seen.has(at) ? 0 : at ? seen.size : Math.max(0, seen.size - 1);
  });
}
