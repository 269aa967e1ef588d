/**
 * Query strings as Go's net/url reads them, but with values as bytes: an argument of `kubectl exec` need not be UTF-8, and
 * URLSearchParams would replace what is not. `+` is a space; a pair with a broken escape or a `;` is dropped.
 */
export class Query {
  readonly #values = new Map<string, Buffer[]>();

  /** `text` is what follows the `?`, as on the wire (Node gives one character per byte). */
  constructor(text: string) {
    for (const pair of text.split("&")) {
      if (pair === "" || pair.includes(";")) continue;
      const separator = pair.indexOf("=");
      const name = decodeQueryPart(separator === -1 ? pair : pair.slice(0, separator));
      const value = decodeQueryPart(separator === -1 ? "" : pair.slice(separator + 1));
      if (name === undefined || value === undefined) continue;
      const key = name.toString("utf8");
      const values = this.#values.get(key);
      if (values === undefined) this.#values.set(key, [value]);
      else values.push(value);
    }
  }

  has(name: string): boolean {
    return this.#values.has(name);
  }

  /** All values as bytes, in order. */
  bytes(name: string): readonly Buffer[] {
    return this.#values.get(name) ?? [];
  }

  /** All values as text. */
  all(name: string): readonly string[] {
    return this.bytes(name).map((value) => value.toString("utf8"));
  }

  /** The first value as text. */
  get(name: string): string | undefined {
    return this.bytes(name)[0]?.toString("utf8");
  }
}

/** The path of a request target, its segments decoded; undefined if an escape is broken or a segment is not UTF-8. */
export function decodePath(path: string): readonly string[] | undefined {
  try {
    return path.split("/").slice(1).map(decodeURIComponent);
  } catch {
    return undefined;
  }
}

function decodeQueryPart(text: string): Buffer | undefined {
  const bytes = Buffer.alloc(text.length);
  let length = 0;
  for (let index = 0; index < text.length; index += 1) {
    const character = text[index];
    if (character === "%") {
      const digits = text.slice(index + 1, index + 3);
      if (!/^[0-9a-fA-F]{2}$/.test(digits)) return undefined;
      bytes[length] = Number.parseInt(digits, 16);
      index += 2;
    } else {
      bytes[length] = character === "+" ? 0x20 : text.charCodeAt(index);
    }
    length += 1;
  }
  return bytes.subarray(0, length);
}
