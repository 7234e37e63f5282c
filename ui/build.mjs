// Builds the page into a folder: `proxy/src/ui`, from where it becomes part of the binary, or the one that is named.

import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { minify } from "terser";

const here = path.dirname(fileURLToPath(import.meta.url));
const folder = process.argv[2] ?? path.join(here, "../proxy/src/ui");

/** What the licences of those whose code is in it ask for: whose it is, and their text, which is the same for all. */
function notices(names) {
  const texts = names.map((name) => fs.readFileSync(path.join(here, "node_modules", name, "LICENSE"), "utf8").replace(/\r/g, ""));
  const whose = texts.map((text, at) => `${names[at]}: ${/^Copyright.*$/m.exec(text)[0]}`);
  const terms = texts.map((text) => text.slice(text.indexOf("Permission is hereby")).replace(/\s+/g, " ").trim());
  if (new Set(terms.map((text) => text.toLowerCase())).size > 1) throw new Error(`the licences of ${names.join(", ")} are no longer the same: look at them`);
  return `/*\n${whose.join("\n")}\n\nThe MIT License\n\n${terms[0]}\n*/`;
}

fs.mkdirSync(folder, { recursive: true });
const { outputFiles } = await build({
  absWorkingDir: here,
  entryPoints: { page: "src/main.tsx" },
  outdir: folder,
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2023",
  jsx: "automatic",
  jsxImportSource: "preact",
  charset: "utf8",
  legalComments: "none",
  write: false,
  logLevel: "warning",
});
for (const { path: file, text } of outputFiles) {
  if (!file.endsWith(".js")) {
    fs.writeFileSync(file, text);
    continue;
  }
  // What esbuild leaves is made smaller by a twentieth once more.
  const { code } = await minify(text, { ecma: 2020, compress: { passes: 3 } });
  fs.writeFileSync(file, `${code}\n${notices(["preact", "uplot", "@dagrejs/dagre", "@dagrejs/graphlib"])}\n`);
}
fs.copyFileSync(path.join(here, "index.html"), path.join(folder, "index.html"));
