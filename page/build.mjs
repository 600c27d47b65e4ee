// Builds the page into src/saeforest/explore/serving/page, with a hash of the sources by which a test finds a stale bundle.
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "../src/saeforest/explore/serving/page");
mkdirSync(out, { recursive: true });

await build({
  absWorkingDir: here,
  entryPoints: { page: "src/main.js" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "utf8",
  legalComments: "eof",
  logLevel: "warning",
});
await build({
  absWorkingDir: here,
  entryPoints: { page: "css/page.css" },
  outdir: out,
  bundle: true,
  minify: true,
  target: "es2022",
  charset: "utf8",
  logLevel: "warning",
});
cpSync(join(here, "src/index.html"), join(out, "index.html"));

const script = readFileSync(join(out, "page.js"), "utf8");
if (/<\/script|<!--/i.test(script)) throw new Error("page.js cannot be inlined: it contains '</script' or '<!--'");

// Sources in the order of their names, each as NAME NUL BYTES NUL.
const sources = ["build.mjs", "package.json", "package-lock.json"];
const walk = (folder) => {
  for (const entry of readdirSync(join(here, folder), { withFileTypes: true })) {
    const name = `${folder}/${entry.name}`;
    if (entry.isDirectory()) walk(name);
    else sources.push(name);
  }
};
walk("css");
walk("src");
const hash = createHash("sha256");
for (const name of sources.sort()) hash.update(name).update("\0").update(readFileSync(join(here, name))).update("\0");
const sha256 = (name) => createHash("sha256").update(readFileSync(join(out, name))).digest("hex");
const built = Object.fromEntries(["index.html", "page.css", "page.js"].map((name) => [name, sha256(name)]));
writeFileSync(join(out, "page.sources.json"), JSON.stringify({ sources: hash.digest("hex"), built }, null, 2) + "\n");
console.log(`page.js ${(script.length / 1024).toFixed(0)} KB`);
