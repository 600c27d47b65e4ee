// A text of one's own: which paths of the forest are active on each token, what each layer adds, what the model predicts.
import { html, useLayoutEffect, useMemo, useState } from "../html.js";
import { query, route } from "../route.js";
import { forest, lacking, useAsk } from "../store.js";
import { isStatic, transport } from "../transport.js";
import { percent, plural, visible, visibleToken } from "../text.js";
import { Bar, Empty, Failure, FeatureLink, Gauge, Lacking, Loading, useDraft } from "../ui.js";

const EXAMPLES = ["Monday follows Sunday.", "Preheat the oven to 350 degrees.", "The court in Paris ruled that the contract was void."];
const per = (result) => result.per_token ?? [];

function Predictions({ clean, spliced }) {
  const rows = Math.max(clean?.length ?? 0, spliced?.length ?? 0);
  if (!rows) return null;
  const most = Math.max(...[...(clean ?? []), ...(spliced ?? [])].map(({ p }) => p));
  const list = (title, items) => html`<div><h3>${title}</h3><ol class="logits">${(items ?? []).map((item, place) => html`<li key=${place}><code class="token">${visibleToken(item.token)}</code><${Bar} value=${item.p} most=${most} text=${percent(item.p)} /></li>`)}</ol></div>`;
  return html`<section aria-labelledby="next"><h2 id="next">What the model predicts next</h2><div class="two">${list("As it is", clean)}${list("With the SAE in its place", spliced)}</div></section>`;
}

/** The active paths as a forest: each feature once, siblings and roots by their activation. */
function merged(paths) {
  const roots = new Map();
  for (const path of paths) {
    let level = roots;
    for (const step of path) {
      if (!level.has(step.id)) level.set(step.id, { ...step, below: new Map() });
      level = level.get(step.id).below;
    }
  }
  const sorted = (level) => [...level.values()].sort((a, b) => b.value - a.value || a.id - b.id).map((node) => ({ ...node, below: sorted(node.below) }));
  return sorted(roots);
}

const MOST = 20;

function Active({ paths, all }) {
  const tree = forest.value;
  const column = tree.telling;
  const roots = useMemo(() => merged(paths), [paths]);
  const most = Math.max(...roots.map(({ value }) => value), 1e-9);
  const shown = all ? roots : roots.slice(0, MOST);
  const node = (one, depth) => html`<li key=${one.id}><div class="path-step"><span class=${`path-name d${Math.min(depth, 6)}`}><${FeatureLink} id=${one.id} label=${one.label} /></span><${Bar} value=${one.value} most=${most} text=${one.value.toFixed(2)} />
      <span class="place-cell">${depth > 0 && column ? html`<${Gauge} place=${tree.place(column.name, one.id)} column=${column} />` : null}</span></div>
    ${one.below.length > 0 && html`<ul>${one.below.map((child) => node(child, depth + 1))}</ul>`}</li>`;
  return html`<div class="path-step path-head muted"><span class="path-name">Feature</span><span class="path-value">activation</span><span class="place-cell" title=${column?.description}>${column ? "beats null pairs" : ""}</span></div>
    <ul class="paths">${shown.map((root) => node(root, 0))}</ul>
    ${shown.length < roots.length && html`<button type="button" onClick=${() => query({ all: true }, { replace: true })}>${plural(roots.length - shown.length, "weaker root")} more</button>`}`;
}

function Position({ entry, token, layers }) {
  const errors = entry.errors ?? [];
  const first = errors.length > layers ? 1 : 0; // the first may be what no layer has reconstructed
  const all = route.value.query.get("all") === "1";
  return html`<div class="columns-even">
    <section aria-labelledby="paths"><h2 id="paths">Active on <code class="token">${visibleToken(token)}</code></h2>
      ${entry.paths?.length ? html`<${Active} paths=${entry.paths} all=${all} />` : html`<p class="state empty">No feature is active here.</p>`}</section>
    <div><section aria-labelledby="adds"><h2 id="adds">What each layer adds</h2>
      <p class="hint">The part of the activation that is not reconstructed yet: the shorter the bar, the more has been explained.</p>
      <ol class="waterfall">${errors.map((error, layer) => html`<li key=${layer}><span>${layer < first ? "by none" : layer === first ? "by layer 0" : `by layers 0 to ${layer - first}`}</span><${Bar} value=${error} most=${Math.max(1, ...errors)} text=${percent(error)} /></li>`)}</ol></section>
      <${Predictions} clean=${entry.clean} spliced=${entry.spliced} /></div></div>`;
}

function Result({ result }) {
  const entries = per(result);
  const given = Number(route.value.query.get("token") ?? entries.length - 1);
  const at = Math.max(0, Math.min(entries.length - 1, given));
  const pick = (place) => query({ token: place }, { replace: true });
  const keys = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(entries.length - 1, at + step));
    pick(next);
    event.currentTarget.children[next]?.focus();
  };
  if (!entries.length) return html`<${Empty}>No token was measured.</${Empty}>`;
  const most = Math.max(...entries.map((entry) => entry.paths?.length ?? 0), 1);
  return html`<div class="token-strip" role="group" aria-label=${`${plural(entries.length, "token")}; arrow keys move`} onKeyDown=${keys}>
      ${result.tokens.map((token, place) => html`<button type="button" key=${place} aria-pressed=${place === at} tabindex=${place === at ? 0 : -1} class=${`d${Math.ceil(((entries[place]?.paths?.length ?? 0) / most) * 4)}`} onClick=${() => pick(place)}>${token.trim() ? visible(token) : visibleToken(token)}<sub class="num">${entries[place]?.paths?.length ?? 0}</sub></button>`)}
    </div><p class="hint">The number at a token, and its underline: how many paths of the forest are active there.</p>
    <${Position} entry=${entries[at]} token=${result.tokens[at]} layers=${result.layers ?? Infinity} />`;
}

export function PromptView() {
  const { query: state } = route.value;
  const asked = state.get("text") ?? "";
  const [text, setText] = useDraft(asked);
  const [answer, setAnswer] = useState({ state: "none" });
  const missing = isStatic ? null : lacking("prompt");
  const stored = useAsk(isStatic ? "prompts" : null);
  useLayoutEffect(() => {
    if (!asked || missing) return setAnswer({ state: "none" });
    if (isStatic) {
      const found = stored.value?.prompts.find((prompt) => prompt.text === asked);
      return setAnswer(found ? { state: "ready", value: found.result } : { state: "none" });
    }
    let current = true;
    setAnswer({ state: "loading" });
    transport.send("POST", "prompt", { text: asked }).then(
      (value) => current && setAnswer({ state: "ready", value }),
      (error) => current && setAnswer({ state: "error", error }),
    );
    return () => (current = false);
  }, [asked, stored.value]);
  return html`<div class="wide prompt-view"><div class="head"><h1>Prompt</h1><p class="hint">Runs the language model and the SAE on a text of yours.</p></div>
    ${missing ? html`<${Lacking} text=${missing} />` : isStatic
      ? stored.value ? html`<p>Prompts in this export: ${stored.value.prompts.map((prompt) => html`<button type="button" key=${prompt.text} aria-pressed=${prompt.text === asked} onClick=${() => query({ text: prompt.text, token: null })}><bdi>${visible(prompt.text)}</bdi></button> `)}</p>` : html`<${Empty}>An export runs no model. <code>saeforest explore RUN</code> does.</${Empty}>`
      : html`<form class="prompt-form" onSubmit=${(event) => {
          event.preventDefault();
          query({ text, token: null });
        }}><label class="stack"><span>Text</span><textarea rows="3" value=${text} onInput=${(event) => setText(event.currentTarget.value)} onKeyDown=${(event) => {
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.currentTarget.form.requestSubmit();
        }} placeholder="Monday follows Sunday."></textarea></label>
        <button type="submit" class="primary" disabled=${!text.trim()}>Run</button> <span class="hint">Ctrl + Enter</span></form>
        ${!asked && html`<p class="examples"><span class="muted">Or try</span> ${EXAMPLES.map((example) => html`<button type="button" key=${example} onClick=${() => query({ text: example, token: null })}>${example}</button> `)}</p>`}`}
    ${answer.state === "loading" && html`<${Loading} what="The model reads the text (the first time it is loaded, which takes some seconds)" />`}
    ${answer.state === "error" && html`<${Failure} error=${answer.error} what="The prompt was not run." />`}
    ${answer.state === "ready" && html`<${Result} result=${answer.value} />`}</div>`;
}
