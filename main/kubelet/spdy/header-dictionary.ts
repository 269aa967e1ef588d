/**
 * The preset dictionary with which SPDY/3 compresses header blocks, section 2.6.10.1 of draft-mbelshe-httpbis-spdy-00:
 * common header names and values, each with its length in front, then text that occurs inside values. Both ends must hold
 * the very same bytes; its Adler-32 is 0xE3C6A7C2, which the zlib header of every first block repeats.
 */

const lengthPrefixed = [
  "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow authorization",
  "cache-control connection content-base content-encoding content-language content-length content-location content-md5 content-range",
  "content-type date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified",
  "location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding",
  "upgrade user-agent vary via warning www-authenticate method get status",
]
  .flatMap((line) => line.split(" "))
  .concat("200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin");

const trailingText = [
  "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
  "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found",
  "500 Internal Server Error501 Not Implemented503 Service Unavailable",
  "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
  "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,public",
  "privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
].join("");

/** Adler-32 of {@link headerDictionary}, as zlib's FDICT header carries it. */
export const headerDictionaryChecksum = 0xe3c6a7c2;

export const headerDictionary: Buffer = Buffer.concat([...lengthPrefixed.map(withLength), Buffer.from(trailingText, "latin1")]);

function withLength(text: string): Buffer {
  const entry = Buffer.alloc(4 + text.length);
  entry.writeUInt32BE(text.length, 0);
  entry.write(text, 4, "latin1");
  return entry;
}
