/** The file of a campaign: read when it is there, and written line by line. */
import { appendFileSync, readFileSync, truncateSync } from "node:fs";
import { Campaign, type CampaignEntry, type CampaignHeader, formatLine, parseCampaign } from "../explore/index.ts";
import { UsageError } from "./usage_error.ts";

export class Journal {
  readonly #file: string;
  /** As far as it had come. */
  readonly campaign: Campaign;

  /** Opens the campaign of that file, or begins one. Throws UsageError for a file of something else. */
  constructor(file: string, header: CampaignHeader) {
    this.#file = file;
    const text = this.#read();
    let known: Campaign | undefined;
    try {
      known = parseCampaign(text);
    } catch (e) {
      throw new UsageError(`${file} is no campaign: ${(e as Error).message}`);
    }
    if (known === undefined) {
      if (text !== "" && !formatLine(header).startsWith(text)) throw new UsageError(`${file} is no campaign, and is left alone`);
      this.#write(() => {
        if (text !== "") truncateSync(file, 0);
        appendFileSync(file, formatLine(header));
      });
      this.campaign = new Campaign(header);
      return;
    }
    const difference = differenceOf(known.header, header);
    if (difference !== undefined) throw new UsageError(`${file} is a campaign ${difference}`);
    // A line that was not written to its end is dropped, so that the next begins one.
    const whole = Buffer.byteLength(text.slice(0, text.lastIndexOf("\n") + 1));
    this.#write(() => truncateSync(file, whole));
    this.campaign = known;
  }

  append(entry: CampaignEntry): void {
    this.#write(() => appendFileSync(this.#file, formatLine(entry)));
  }

  #read(): string {
    try {
      return readFileSync(this.#file, "utf8");
    } catch (e) {
      if ((e as NodeJS.ErrnoException).code === "ENOENT") return "";
      throw new UsageError(`the campaign cannot be read: ${(e as Error).message}`);
    }
  }

  #write(body: () => void): void {
    try {
      body();
    } catch (e) {
      throw new UsageError(`the campaign cannot be written: ${(e as Error).message}`);
    }
  }
}

function differenceOf(known: CampaignHeader, wanted: CampaignHeader): string | undefined {
  if (known.campaign !== wanted.campaign) return `of ${known.campaign}, not of ${wanted.campaign}`;
  if (known.barlink !== wanted.barlink) return `of barlink ${known.barlink}, whose parts need not be those of ${wanted.barlink}`;
  if (known.parts !== wanted.parts) return `begun with --parts ${known.parts}, not ${wanted.parts}`;
  if (known.limit !== wanted.limit) return `begun with --part-runs ${known.limit}, not ${wanted.limit}`;
  return undefined;
}
