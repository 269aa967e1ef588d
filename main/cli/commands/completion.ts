/** `podyard completion bash|zsh|fish`: scripts generated from the command tree, so that they cannot fall behind it. */
import { Argument, Command } from "commander";
import type { Terminal } from "../terminal.ts";

export function completionCommand(terminal: Terminal, program: Command): Command {
  return new Command("completion")
    .description("print a completion script: source <(podyard completion bash)")
    .addArgument(new Argument("<shell>").choices(["bash", "zsh", "fish"]))
    .action((shell: string) => {
      const lines = words(program, []);
      if (shell === "fish") terminal.out(fish(lines));
      else terminal.out(`${shell === "zsh" ? "autoload -U +X bashcompinit && bashcompinit\n" : ""}${bash(lines)}`);
    });
}

interface Line {
  readonly path: readonly string[];
  readonly words: readonly string[];
}

function words(command: Command, path: readonly string[]): readonly Line[] {
  const own = [...command.commands.map((child) => child.name()), ...command.options.flatMap((option) => (option.long === undefined ? [] : [option.long])), "--help"];
  return [{ path, words: own }, ...command.commands.flatMap((child) => words(child, [...path, child.name()]))];
}

function bash(lines: readonly Line[]): string {
  const cases = lines.map((line) => `    "${line.path.join(" ")}") words="${line.words.join(" ")}" ;;`).join("\n");
  return `_podyard() {
  local path="" word words=""
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do case "$word" in -*) ;; *) path="\${path:+$path }$word" ;; esac; done
  case "$path" in
${cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _podyard podyard
`;
}

function fish(lines: readonly Line[]): string {
  return lines
    .map((line) => {
      const condition = line.path.length === 0 ? "__fish_use_subcommand" : line.path.map((name) => `__fish_seen_subcommand_from ${name}`).join("; and ");
      const names = line.words.filter((word) => !word.startsWith("-"));
      const options = line.words.filter((word) => word.startsWith("--")).map((word) => word.slice(2));
      return [
        ...(names.length > 0 ? [`complete -c podyard -f -n '${condition}' -a '${names.join(" ")}'`] : []),
        ...options.map((option) => `complete -c podyard -n '${condition}' -l ${option}`),
      ].join("\n");
    })
    .join("\n")
    .concat("\n");
}
