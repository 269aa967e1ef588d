/** One line on stderr that is rewritten in place on a terminal, and printed at most every five seconds elsewhere. */
export interface ProgressLine extends AsyncDisposable {
  update(text: string): void;
  clear(): void;
}

export function progressLine(quiet: boolean, stream: NodeJS.WriteStream = process.stderr): ProgressLine {
  let printedAt = 0;
  let shown = false;
  const clear = (): void => {
    if (shown && stream.isTTY) stream.write("\r\u001B[K");
    shown = false;
  };
  return {
    update(text) {
      if (quiet) return;
      const now = Date.now();
      if (stream.isTTY) {
        if (now - printedAt < 100) return;
        stream.write(`\r\u001B[K${text.slice(0, (stream.columns || 80) - 1)}`);
      } else {
        if (now - printedAt < 5000) return;
        stream.write(`${text}\n`);
      }
      printedAt = now;
      shown = true;
    },
    clear,
    [Symbol.asyncDispose]: () => Promise.resolve(clear()),
  };
}
