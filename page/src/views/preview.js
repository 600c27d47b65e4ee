// The chosen feature beside the tree list, in short.
import { html } from "../html.js";
import { to } from "../route.js";
import { forest, useAsk } from "../store.js";
import { percent, plural, visible } from "../text.js";
import { Answer, EdgeNumber, FeatureLink, nameOf } from "../ui.js";
import { Contexts } from "../contexts.js";
import { useSettled } from "../search.js";

export function Preview({ id, found }) {
  const tree = forest.value;
  const settled = useSettled(id);
  const answer = useAsk(settled === null ? null : `feature/${settled}`);
  if (id === null || !tree.has(id)) return html`<aside class="preview" aria-label="Chosen feature"><p class="hint">Choose a feature: arrow keys walk and open, Enter shows its page.</p></aside>`;
  const columns = tree.about.filter((column) => !column.mechanical).slice(0, 4);
  return html`<aside class="preview" aria-label="Chosen feature">
    <h2><a href=${to("feature", id)}><span class="num">${id}</span> <bdi>${visible(nameOf(id) ?? "no label")}</bdi></a></h2>
    <p class="hint">${tree.dead[id] ? "Never fired on the indexed tokens." : `Active on ${percent(tree.density[id])} of tokens.`} Layer ${tree.layer[id]}. ${tree.kids(id).length ? html`<a href=${to("family", id)}>${plural(tree.kids(id).length, "child", "children")}</a>.` : "No children."}</p>
    ${tree.parent[id] >= 0 && html`<p class="hint">Under <${FeatureLink} id=${tree.parent[id]} /></p>
      <dl class="pairs">${columns.map((column) => html`<div key=${column.name}><dt title=${column.description}>${column.title}</dt><dd><${EdgeNumber} column=${column} id=${id} /></dd></div>`)}</dl>`}
    ${found && html`<h3>Found here</h3><${Contexts} contexts=${[found]} full=${true} label="Context found" />`}
    ${settled === id && !tree.dead[id] && html`<${Answer} answer=${answer} what="The contexts">${(feature) => html`<h3>Strongest contexts</h3>
      <${Contexts} contexts=${(feature.top ?? []).slice(0, 7)} max=${feature.max} full=${true} label="Strongest contexts" />`}</${Answer}>`}
  </aside>`;
}
