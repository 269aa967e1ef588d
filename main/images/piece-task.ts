/** What the store's threads do, and what they answer. The messages cross `worker_threads`, hence plain data. */
import type { Digest } from "../contract/image.ts";
import type { Compression } from "./formats/virtual-machine-image.ts";

interface Range {
  readonly path: string;
  readonly offset: number;
  readonly length: number;
}

interface VerifiedRange extends Range {
  /** Of the uncompressed bytes. */
  readonly digest: Digest;
}

export type PieceTask =
  /** Verifies and decompresses a blob held in memory, writes what is not zero. */
  | (VerifiedRange & { readonly kind: "decode"; readonly compressed: Uint8Array<ArrayBuffer>; readonly blobDigest: Digest; readonly compression: Compression })
  /** The same for a blob of any size that another thread appends to a file; `grown` says how far it is. */
  | (VerifiedRange & { readonly kind: "follow"; readonly partialPath: string; readonly blob: { readonly digest: Digest; readonly size: number }; readonly compression: Compression })
  /** Copies bytes that should have the digest; nothing is promised about the target if they have not. */
  | (VerifiedRange & { readonly kind: "copy"; readonly source: { readonly path: string; readonly offset: number } })
  | (VerifiedRange & { readonly kind: "verify" })
  /** Reads and compresses; all zeros give nothing. */
  | (Range & { readonly kind: "encode" })
  /** Compresses a whole file with gzip into another. */
  | (Range & { readonly kind: "gzip"; readonly outputPath: string });

export interface EncodedPiece {
  readonly compressed: Uint8Array<ArrayBuffer>;
  readonly blobDigest: Digest;
  readonly digest: Digest;
}

export interface GzippedFile {
  readonly blob: { readonly digest: Digest; readonly size: number };
  readonly digest: Digest;
}

/** `blob-mismatch`: the compressed bytes are wrong; `raw-mismatch`: the uncompressed ones are, or cannot be decoded. */
export type PieceOutcome =
  | { readonly kind: "done" }
  | { readonly kind: "blob-mismatch"; readonly detail: string }
  | { readonly kind: "raw-mismatch"; readonly detail: string }
  | { readonly kind: "encoded"; readonly piece: EncodedPiece }
  | { readonly kind: "gzipped"; readonly file: GzippedFile }
  | { readonly kind: "zeros" }
  | { readonly kind: "failed"; readonly code: string | undefined; readonly message: string };

export type ToWorker =
  | { readonly kind: "task"; readonly id: number; readonly task: PieceTask }
  /** `ended`: no more bytes will come; without the blob's full size that means the download was given up. */
  | { readonly kind: "grown"; readonly id: number; readonly available: number; readonly ended: boolean };

export interface FromWorker {
  readonly id: number;
  readonly outcome: PieceOutcome;
}
