// Checks the JSON Schemas with ajv in strict mode, the examples by them, and the AsyncAPI document with its parser.
import { readdirSync, readFileSync } from "node:fs";
import { fromFile, Parser } from "@asyncapi/parser";
import Ajv from "ajv/dist/2020.js";
import addFormats from "ajv-formats";

const root = new URL("../../", import.meta.url).pathname;
const read = (path) => JSON.parse(readFileSync(root + path, "utf8"));
let failed = false;
const fail = (...what) => { failed = true; console.error(...what); };

for (const file of readdirSync(root + "events/schema")) {
  const ajv = new Ajv({ strict: true, strictRequired: true, allErrors: true });
  addFormats(ajv);
  try {
    const valid = ajv.compile(read("events/schema/" + file));
    const type = file.replace(/\.json$/, "");
    for (const example of readdirSync(root + "events/testdata/" + type)) {
      if (!valid(read(`events/testdata/${type}/${example}`))) fail(type, example, ajv.errorsText(valid.errors));
    }
  } catch (err) {
    fail(`events/schema/${file}:`, err.message);
  }
}

const { document, diagnostics } = await fromFile(new Parser(), root + "docs/asyncapi.yaml").parse();
for (const d of diagnostics) {
  if (d.severity <= 1) fail("docs/asyncapi.yaml", d.code, d.path.join("."), d.message); // an error or a warning
}
if (!document) fail("docs/asyncapi.yaml is no AsyncAPI document");
process.exit(failed ? 1 : 0);
