/** A Kubernetes quantity as a number. https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/ */
const factors: Readonly<Record<string, number>> = {
  "": 1,
  m: 1e-3,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  E: 1e18,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
  Ei: 2 ** 60,
};

/** 0 if absent or unreadable: for display only, admission has checked it. */
export function quantityBytes(quantity: string | number | undefined): number {
  const match = /^\+?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]+)|(m|k|[KMGTPE]i|[MGTPE])?)$/.exec(String(quantity ?? ""));
  if (match === null) return 0;
  const [, digits, exponent, suffix] = match;
  return Math.ceil(Number(digits) * (exponent === undefined ? (factors[suffix ?? ""] ?? 0) : 10 ** Number(exponent)));
}
