// The frame of the page: names, ways to the views, search, keys; and the view that the address asks for.
import "@preact/signals"; // components follow the signals they read
import { html, render, useLayoutEffect, useRef } from "./html.js";
import { beginAt, go, route, to } from "./route.js";
import { complete, forest, lacking, overview, said, start, trouble } from "./store.js";
import { isStatic, transport } from "./transport.js";
import { SearchBox } from "./searchbox.js";
import { Failure, Lacking, Loading } from "./ui.js";
import { count, plural, visible } from "./text.js";
import { Overview } from "./views/overview.js";
import { MapView } from "./views/map.js";
import { TreeView } from "./views/tree.js";
import { FeatureView } from "./views/feature.js";
import { FamiliesView } from "./views/families.js";
import { FamilyView } from "./views/family.js";
import { EdgesView } from "./views/edges.js";
import { DataView } from "./views/data.js";
import { GeometryView } from "./views/geometry.js";
import { PromptView } from "./views/prompt.js";
import { TrainingView } from "./views/training.js";
import { CompareView } from "./views/compare.js";
import { AuditView } from "./views/audit.js";
import { HelpView } from "./views/help.js";

const VIEWS = {
  overview: ["Overview", Overview],
  map: ["Map", MapView],
  tree: ["Tree", TreeView],
  families: ["Families", FamiliesView],
  edges: ["Edges", EdgesView],
  prompt: ["Prompt", PromptView],
  training: ["Training", TrainingView],
  compare: ["Compare", CompareView],
  audit: ["Blind audit", AuditView],
  help: ["Help", HelpView],
};
const OF_A_FEATURE = {
  feature: ["Feature", FeatureView],
  family: ["Family", FamilyView],
  data: ["Tree against data", DataView],
  geometry: ["Geometry", GeometryView],
};

/** Whether a view works here: an export has no server, and one that holds only a part has no views of the whole. */
function works(view) {
  if (!isStatic || OF_A_FEATURE[view]) return true;
  if (["prompt", "compare", "audit"].includes(view)) return false;
  if (forest.value && !forest.value.whole) return ["overview", "tree", "help"].includes(view);
  return view !== "training" || !lacking("training");
}

/** What an export is, above every page of it. */
function ExportNotice() {
  const tree = forest.value;
  const { n_features: n, export: part } = overview.value;
  if (tree.whole) return html`<p class="export-notice">A saved copy, read only. <code>saeforest explore RUN</code> also runs the model and takes labels.</p>`;
  const { root } = part;
  const [below, above] = [tree.size[root] - 1, tree.path(root).length - 1];
  const words = [`feature ${root}`, below && `the ${count(below)} below it`, above && `${plural(above, "ancestor")} of it`].filter(Boolean);
  return html`<p class="export-notice"><strong>This file holds ${count(tree.ids.length)} of ${plural(n, "feature")}</strong>: ${words.join(", ")}. Its numbers are those of the whole run; other features appear by name only. <code>saeforest explore RUN</code> shows everything.</p>`;
}

function Shell() {
  const { view, id } = route.value;
  const known = VIEWS[view] ?? OF_A_FEATURE[view];
  const about = overview.value;
  const main = useRef(null);
  const before = useRef(null);

  // At once: a focus that moves later would be taken from what the reader does next.
  useLayoutEffect(() => {
    const place = `${view}/${id}`;
    const title = known?.[0] ?? "Not found";
    document.title = `${id === null ? title : `${title} ${id}`} · ${visible(about?.title ?? "saeforest")}`;
    const taken = main.current !== document.activeElement && main.current.contains(document.activeElement); // by the view itself
    if (before.current !== null && before.current !== place && !taken) {
      main.current.focus({ preventScroll: true });
      scrollTo(0, 0);
    }
    if (before.current !== null && before.current !== place) said.value = ""; // it was said of what was left
    before.current = place;
  }, [view, id, about]);

  let content;
  if (trouble.value) content = html`<${Failure} error=${trouble.value} what="The forest could not be loaded." />`;
  else if (!forest.value) content = html`<${Loading} what="Loading the forest" />`;
  else if (!known) content = html`<${Failure} error=${{ message: `There is no view “${visible(view)}”. The ways to all views are above.` }} what="Nothing here." />`;
  else if (!works(view)) content = html`<h1>${known[0]}</h1><${Lacking} text=${`${known[0]}: not in this file, which ${forest.value.whole ? "runs no model and takes no notes" : "holds only a part of the forest"}; run: \`saeforest explore RUN\``} />`;
  else if (OF_A_FEATURE[view] && !forest.value.has(id))
    content = html`<${Failure} what=${`There is no feature ${id ?? visible(location.hash)}.`}
      error=${{ message: forest.value.whole ? `Features have numbers from 0 to ${forest.value.n - 1}.` : "This export holds only some features: the tree lists them." }} />`;
  else content = html`<${known[1]} key=${OF_A_FEATURE[view] ? `${view}/${id}` : view} id=${id} />`;

  return html`
    <a class="skip" href="#main" onClick=${(event) => {
      event.preventDefault();
      main.current.focus();
    }}>Skip to content</a>
    <header class="bar-top">
      <a class="brand" href=${to("overview")}><svg width="18" height="18" viewBox="0 0 16 16" aria-hidden="true"><path d="M2 8h4M6 8V3h7M6 8v5h7M6 8h7" /></svg><span>saeforest</span></a>
      <nav aria-label="Views">${Object.entries(VIEWS).filter(([key]) => works(key)).map(
        ([key, [title]]) => html`<a key=${key} href=${to(key)} aria-current=${key === view ? "page" : null}>${title}</a>`,
      )}</nav>
      <${SearchBox} />
    </header>
    ${isStatic && forest.value && overview.value && html`<${ExportNotice} />`}
    <main id="main" ref=${main} tabindex="-1" aria-busy=${String(!complete.value)} class=${`view-${known ? view : "none"}`}>${content}</main>
    <footer class="bar-bottom">
      <span><bdi>${visible(about?.title ?? "")}</bdi>${about ? html` · <bdi>${visible(about.model)}</bdi> · <bdi>${visible(about.site)}</bdi>` : null}</span>
      <span class="said" role="status" aria-live="polite">${said.value}</span>
      <span><a href=${to("help")}>Keys and words</a></span>
    </footer>`;
}

const editing = (target) => target.closest?.("input, textarea, select, [contenteditable]") && target.type !== "checkbox";

/** Move the focus along the contexts of a view. */
function stepContext(step) {
  const all = [...document.querySelectorAll("[data-context]")].filter((element) => element.offsetParent !== null);
  if (!all.length) return;
  const at = all.indexOf(document.activeElement.closest?.("[data-context]"));
  const next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + step))];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.key === "Escape" && document.activeElement?.id === "search") return document.activeElement.blur();
  if (editing(event.target)) return;
  const { view, id } = route.value;
  const tree = forest.value;
  const inFeature = OF_A_FEATURE[view] && tree?.has(id);
  const move = (other) => other !== undefined && tree.has(other) && go(to(view === "family" && !tree.kids(other).length ? "feature" : view, other));
  const siblings = inFeature ? tree.held(tree.parent[id] < 0 ? tree.roots : tree.kids(tree.parent[id])) : [];
  const actions = {
    "/": () => document.getElementById("search").select(),
    "?": () => go(to("help")),
    j: () => stepContext(1),
    k: () => stepContext(-1),
    p: inFeature && (() => move(tree.parent[id])),
    c: inFeature && (() => move(tree.held(tree.kids(id))[0])),
    "[": inFeature && (() => move(siblings[siblings.indexOf(id) - 1])),
    "]": inFeature && (() => move(siblings[siblings.indexOf(id) + 1])),
    f: inFeature && (() => go(to(view === "family" ? "feature" : "family", id))),
    t: inFeature && (() => go(to("tree", null, { at: id }))),
  };
  const act = actions[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

document.addEventListener("keydown", keys);
const page = document.getElementById("page");
page.replaceChildren();
beginAt(transport.config?.start);
render(html`<${Shell} />`, page);
start();
