/**
 * The few DER encodings that certificate requests and certificates need (ITU-T X.690). Writing only: everything is read
 * with node:crypto's X509Certificate. A general ASN.1 library would cost the idle host several MB for these forty lines.
 */

/** One element: tag, length, contents. */
export function element(tag: number, ...contents: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(contents);
  return Buffer.concat([Buffer.from([tag]), encodeLength(body.length), body]);
}

export function sequence(...contents: readonly Uint8Array[]): Buffer {
  return element(0x30, ...contents);
}

export function set(...contents: readonly Uint8Array[]): Buffer {
  return element(0x31, ...contents);
}

/** A non-negative INTEGER from big-endian bytes. */
export function integer(bytes: Uint8Array): Buffer {
  let start = 0;
  while (start < bytes.length - 1 && bytes[start] === 0) start += 1;
  const trimmed = bytes.subarray(start);
  return element(0x02, ...((trimmed[0] ?? 0) >= 0x80 ? [Buffer.from([0]), trimmed] : [trimmed]));
}

export function boolean(value: boolean): Buffer {
  return element(0x01, Buffer.from([value ? 0xff : 0]));
}

export function octetString(bytes: Uint8Array): Buffer {
  return element(0x04, bytes);
}

/** `unused` counts the bits at the end of the last byte that do not belong to the string. */
export function bitString(bytes: Uint8Array, unused = 0): Buffer {
  return element(0x03, Buffer.from([unused]), bytes);
}

export function utf8String(text: string): Buffer {
  return element(0x0c, Buffer.from(text, "utf8"));
}

/** `[number]`, constructed: EXPLICIT tags and IMPLICIT tags of constructed types. */
export function tagged(number: number, ...contents: readonly Uint8Array[]): Buffer {
  return element(0xa0 | number, ...contents);
}

/** `[number]` IMPLICIT of a primitive type. */
export function taggedPrimitive(number: number, contents: Uint8Array): Buffer {
  return element(0x80 | number, contents);
}

export function objectIdentifier(dotted: string): Buffer {
  const [first = 0, second = 0, ...rest] = dotted.split(".").map(Number);
  return element(0x06, Buffer.from([first * 40 + second, ...rest.flatMap(encodeBase128)]));
}

/** Always GeneralizedTime would be wrong: RFC 5280 wants UTCTime until 2049. */
export function time(date: Date): Buffer {
  const digits = `${date.toISOString().replaceAll(/[-:T]/g, "").slice(0, 14)}Z`;
  return date.getUTCFullYear() < 2050 ? element(0x17, Buffer.from(digits.slice(2))) : element(0x18, Buffer.from(digits));
}

/** PEM with lines of 64 characters. */
export function toPem(label: string, der: Uint8Array): string {
  const lines = Buffer.from(der).toString("base64").match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join("\n")}\n-----END ${label}-----\n`;
}

function encodeLength(length: number): Buffer {
  if (length < 0x80) return Buffer.from([length]);
  const bytes: number[] = [];
  for (let rest = length; rest > 0; rest = Math.floor(rest / 256)) bytes.unshift(rest % 256);
  return Buffer.from([0x80 | bytes.length, ...bytes]);
}

function encodeBase128(value: number): number[] {
  const bytes = [value % 128];
  for (let rest = Math.floor(value / 128); rest > 0; rest = Math.floor(rest / 128)) bytes.unshift((rest % 128) | 0x80);
  return bytes;
}
