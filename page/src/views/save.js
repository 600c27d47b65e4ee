// One subtree as a file to send: a button, where there is a server that can make it.
import { html, useState } from "../html.js";
import { forest, said } from "../store.js";
import { isStatic, transport } from "../transport.js";
import { plural } from "../text.js";
import { Failure, saveBlob } from "../ui.js";

const size = (bytes) => (bytes < 950_000 ? `${Math.round(bytes / 1000)} KB` : `${(bytes / 1e6).toFixed(1)} MB`);

export function SaveFamily({ id }) {
  const [state, setState] = useState({ state: "none" });
  if (isStatic) return null;
  const tree = forest.value;
  const n = tree.size[id] + tree.path(id).length - 1;
  const what = tree.kids(id).length ? "family" : "feature";
  const save = () => {
    setState({ state: "loading" });
    transport.file(`export/${id}`).then(
      ({ name, blob }) => {
        saveBlob(name, blob);
        said.value = `Saved ${name}, ${size(blob.size)}.`;
        setState({ state: "ready", words: `Saved as ${name}` });
      },
      (error) => setState({ state: "error", error }),
    );
  };
  return html`<span class="save"><button type="button" disabled=${state.state === "loading"} onClick=${save}
      title=${`${plural(n, "feature")} (this one, all below it, and its ancestors) in one HTML file that opens in any browser, without saeforest. Labels, notes and texts go along.`}>${state.state === "loading" ? `Saving ${plural(n, "feature")} …` : `Save this ${what}`}</button>
    ${state.state === "ready" && html`<span class="hint" role="status">${state.words}</span>`}
    ${state.state === "error" && html`<${Failure} error=${state.error} what="The file could not be made." />`}</span>`;
}
