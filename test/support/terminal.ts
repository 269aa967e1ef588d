/** A command under a real pseudo terminal, typed into and read like a person would; for `kubectl exec -it` and its like. */
import { spawn } from "node:child_process";
import { join } from "node:path";

export interface TerminalSession extends AsyncDisposable {
  type(text: string): void;
  resize(rows: number, columns: number): void;
  /** Resolves with what was printed since the last match once the pattern appears. Rejects at the deadline with all output. */
  expect(pattern: RegExp, milliseconds?: number): Promise<string>;
  readonly exit: Promise<number>;
}

export function openTerminal(command: readonly string[], options: { readonly env?: Readonly<Record<string, string>>; readonly rows?: number; readonly columns?: number } = {}): TerminalSession {
  const child = spawn("python3", [join(import.meta.dirname, "terminal_child.py"), String(options.rows ?? 24), String(options.columns ?? 80), ...command], {
    env: { ...process.env, ...options.env },
    stdio: ["pipe", "pipe", "inherit"],
  });
  let output = "";
  let seen = 0;
  const waiters = new Set<() => void>();
  const wake = (): void => waiters.forEach((waiter) => waiter());
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output += text;
    wake();
  });
  child.stdin.on("error", () => {});
  const exit = new Promise<number>((resolve) => {
    child.on("close", (code) => {
      resolve(code ?? 255);
      wake();
    });
  });
  const send = (message: object): void => void child.stdin.write(`${JSON.stringify(message)}\n`);
  return {
    type: (text) => send({ write: Buffer.from(text).toString("base64") }),
    resize: (rows, columns) => send({ resize: [rows, columns] }),
    expect: (pattern, milliseconds = 60_000) =>
      new Promise((resolve, reject) => {
        const finish = (settle: () => void): void => {
          clearTimeout(timer);
          waiters.delete(look);
          settle();
        };
        const look = (): void => {
          const match = pattern.exec(output.slice(seen));
          if (match !== null) {
            const text = output.slice(seen, seen + match.index + match[0].length);
            seen += match.index + match[0].length;
            finish(() => resolve(text));
          } else if (child.exitCode !== null) finish(() => reject(new Error(`ended with ${child.exitCode} without ${pattern}:\n${output.slice(seen)}`)));
        };
        const timer = setTimeout(() => finish(() => reject(new Error(`no ${pattern} within ${milliseconds} ms in:\n${output.slice(seen)}`))), milliseconds);
        waiters.add(look);
        look();
      }),
    exit,
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await exit;
    },
  };
}
