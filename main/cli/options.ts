/** Options that several commands share. */
import { InvalidArgumentError, Option } from "commander";
import { type OutputFormat, outputFormats } from "./output.ts";

export function outputOption(preset: OutputFormat = "table"): Option {
  return new Option("-o, --output <format>", "output format").choices(outputFormats).default(preset);
}

/** A parser of whole numbers for commander: a wrong value is a usage error (exit code 2). */
export function wholeNumber(minimum: number, maximum: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < minimum || value > maximum) throw new InvalidArgumentError(`Expected a whole number from ${minimum} to ${maximum}.`);
    return value;
  };
}
