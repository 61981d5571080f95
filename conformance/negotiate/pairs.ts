/** What every pair agrees on, found by running it, as a table in Markdown. */
import { Errno } from "../../src/lib/errno.ts";
import { BYTES, EXPORTERS, type ExporterName, IMPORTERS, type ImporterName, PairScene } from "./scene.ts";

/** The agreement of one pair, whether the memory was reached, and what a revoke does to the mapping. */
function agreementOf(exporter: ExporterName, importer: ImporterName): string {
  const scene = new PairScene();
  const exported = scene.export(exporter);
  const made = scene.import(importer, exported);
  if (made instanceof Errno) {
    exported.fd.close();
    scene.end();
    return made.name;
  }
  const [att] = exported.dmabuf.negotiated?.attachments ?? [];
  const type = att === undefined ? "?" : att.agreement.type;
  const inRam = exporter === "vram" && (att?.agreement.exporter.providers ?? []).length === 0 ? ", in RAM" : "";
  const reached = made.write(BYTES - 1n, 7) === undefined && made.read(BYTES - 1n) === 7;
  exported.take?.();
  exported.give?.();
  const after = made.read(BYTES - 1n);
  const again = exported.take === undefined ? "" : after instanceof Errno ? ", then gone" : inRam !== "" ? "" : ", then again";
  made.leave();
  exported.fd.close();
  const left = Object.keys(scene.end());
  return reached && left.length === 0 ? `${type}${inRam}${again}` : "broken";
}

/** A row an exporter, a column an importer. */
export function pairsTable(): string {
  const row = (cells: readonly string[]): string => `| ${cells.join(" | ")} |\n`;
  return (
    row(["", ...IMPORTERS]) +
    row(["---", ...IMPORTERS.map(() => "---")]) +
    EXPORTERS.map((e) => row([`**${e}**`, ...IMPORTERS.map((i) => agreementOf(e, i))])).join("")
  );
}
