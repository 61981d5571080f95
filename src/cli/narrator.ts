/** Prints the tour: numbered steps, aligned facts, colour only for a terminal that wants it. */
import { styleText } from "node:util";

type Style = "bold" | "dim" | "green" | "red" | "cyan";

export class Narrator {
  readonly #out: NodeJS.WritableStream;
  readonly #colour: boolean;
  #step = 0;

  constructor(out: NodeJS.WritableStream & { isTTY?: boolean }, env: NodeJS.ProcessEnv) {
    this.#out = out;
    this.#colour = out.isTTY === true && env.NO_COLOR === undefined && env.TERM !== "dumb";
  }

  #style(style: Style, text: string): string {
    return this.#colour ? styleText(style, text, { validateStream: false }) : text;
  }

  line(text = ""): void {
    this.#out.write(`${text}\n`);
  }

  title(text: string): void {
    this.line(this.#style("bold", text));
  }

  /** A step's headline, with what it is about in one sentence. */
  step(text: string): void {
    this.#step++;
    this.line();
    this.line(this.#style("bold", `${String(this.#step).padStart(2)}. ${text}`));
  }

  /** One call and its answer. */
  call(text: string, answer: string): void {
    this.line(`    ${this.#style("cyan", text)} = ${answer}`);
  }

  /** A value worth seeing. */
  fact(name: string, value: string): void {
    this.line(`    ${name.padEnd(18)} ${value}`);
  }

  /** What the kernel or the hardware said. */
  event(text: string): void {
    this.line(`    ${this.#style("dim", `· ${text}`)}`);
  }

  good(text: string): void {
    this.line(`    ${this.#style("green", "✓")} ${text}`);
  }

  bad(text: string): void {
    this.line(`    ${this.#style("red", "✗")} ${text}`);
  }
}
