// The words of this page, each explained once: Help lists them, and `Term` shows them where they are met.
import { forest, overview } from "./store.js";

/** By key: [title, text]. */
export const WORDS = {
  edge: ["Edge", "A parent and one of its children. Not every edge has every number: a rare child says too little, and each column leaves out the edges that it is not defined on. So counts of edges differ from place to place; the overview and Edges say what each of them counts."],
  gate: ["Gate", "In a gated SAE, such as a Tree SAE, a child may be active only where its parent is. So its parent is active wherever it is, whatever the two mean: numbers that follow from this say nothing about the tree, and are marked."],
  null: ["Null pairs", "What chance gives: pairs of features in which parents have changed places within their layer with others that fire about as often. They are measured on the same text as the edges."],
  beats: ["Beats null pairs", "The place of an edge: the share of null pairs that it exceeds by a number, in the direction that supports an edge. The value says how often something happens; the place says whether chance gives as much, and is the one to trust first: 25% that beats 98% of null pairs is a loose but real link, 90% that beats half of them is none. A tie counts half: where most null pairs have 0% too, an edge with 0% has a place near the middle and beats hardly any. On the mark, the line in the middle is chance and the small tick at the right end the top 5%; “–” stands where the number is not defined for the edge."],
  judged: ["Judged", "Of a child: it has a place among null pairs by the number that is asked about. A child that fires too rarely has none, and each number leaves out the edges that it is not defined on; so counts of judged children and of families differ from number to number."],
  middle: ["The middle child", "The median of a family: as many of its judged children beat more null pairs as beat fewer. A family fails if its middle child does not beat half of the null pairs."],
  s_res: ["S_res", "Reconstruction score of an edge (Tree SAE paper, equation 5): the smaller of two cosines, of the direction the child’s activations take in the data with the child’s decoder row, and with the parent’s. It is high only if the child writes what is there and the parent writes in that direction too."],
  auc: ["AUC", "The probability that an edge of the tree beats a null pair; a tie counts half. 0.5 is chance, 1 is always."],
  detector: ["Own detector", "A child’s encoder alone, without the gate and without the competition for places: on where its value is above the median of those that the child has where it is active. It does not know whether the parent is active."],
  l0: ["L0", "The number of active features on a token, on average. The lower, the sparser."],
  fve: ["FVE", "Fraction of variance explained: how much of the variance of the model’s activations the SAE gives back. 1 is all of it."],
  ce: ["CE loss score", "How much of the language model’s prediction (its cross-entropy) is kept when the reconstruction stands in for the activation: 1 is all of it, 0 as little as without the activation."],
  copies: ["Copies", "Edges on which parent and child write in nearly the same direction. A copy’s parent covers it for free, and it says nothing new: a tree with many of them is less than its numbers."],
  dead: ["Dead, alive, silent", "A feature that did not fire on some text. Here it is counted on the indexed tokens (alive, “never fired”, silent children); the measured share of dead features is on held-out text, which is shorter or other text, so the two differ."],
  density: ["Density", "The fraction of tokens on which a feature is active."],
  lift: ["Lift", "How much more often than anywhere, as a power of two (log2): +1 is twice as often, +3 eight times, 0 is chance, −1 half as often."],
  context: ["Context", "A token on which the feature fires, with the text around it. Darker and thicker underlined: a stronger activation, as a share of the feature’s maximum. Point at a token for its value, or switch figures on."],
  quantiles: ["Quantiles", "A sample of activations of every strength, not only the strongest: what a feature looks like on an ordinary day."],
  residue: ["Residue", "Contexts in which a parent fires and none of its children does."],
  logits: ["Effect on the next token", "What one unit of the feature’s activation adds to the logit of a token, by the direct path alone: its decoder row, scaled as the final norm scales it, times the unembedding. A difference of 1 makes a token 2.7 times as likely against another."],
  overlap: ["Sibling overlap", "Of the tokens on which either of two children fires, the share on which both do (Jaccard)."],
  match: ["Match", "In a comparison: the feature of the other SAE with the nearest decoder row, if the cosine is high enough."],
  kept: ["Kept, elsewhere", "An edge is kept in another SAE if the match of the parent is the parent of the child’s match. It is elsewhere if both have a match, but that one has another parent there, or none."],
};

const OF_VALUES = { "sparsity.l0": "l0", "dead.dead_share": "dead", "reconstruction.fve": "fve", "cross_entropy.ce_loss_score": "ce", "edges.copies": "copies" };

/** The explanation of a measured value: {word, text}. */
export function wordOfValue({ name, description }) {
  const word = OF_VALUES[name] ?? name;
  return { word, text: WORDS[word]?.[1] ?? description };
}

/** Measured values that have no entry above: [key, title, text]. */
export const measuredWords = () =>
  (overview.value?.values ?? []).filter(({ name, title, description }) => description && !OF_VALUES[name] && !forest.value.about.some((column) => column.title === title)).map(({ name, title, description }) => [name, title, description]);

/** Why a column's values say nothing about the tree, short and as a sentence; null if they may. */
export function forced(column) {
  if (!column?.mechanical) return null;
  return column.forced_by === "choice"
    ? { tag: "parents chosen by it", words: "the parents of this forest were chosen by it, so it is high whatever they mean" }
    : { tag: "forced by the gate", words: "the gate forces this value, whatever the two mean" };
}

const ASIDES = { tokens_alike: "0% is no failure: the child may have tokens of its own" };

/** Whether a column's value may be zero on a good edge, so that a family of zeros does not fail. */
export const mayBeNone = (column) => column.name in ASIDES;

/** Which values of a column support an edge. */
export function supports(column) {
  if (column.mechanical) return "says nothing here";
  if (column.of_pair === false) return "about the child alone";
  const way = column.higher_is_more === false ? "lower supports the edge" : "higher supports the edge";
  return ASIDES[column.name] ? `${way}; ${ASIDES[column.name]}` : way;
}
