// A word with its explanation: on hover and on focus, and in full in Help.
import { html, useId, useRef, useState } from "./html.js";
import { to } from "./route.js";
import { WORDS } from "./words.js";

const WIDTH = 320;

/** word: its key in Help; text: the explanation, if it is not that of `WORDS`; children: the words on the page. */
export function Term({ word, text = WORDS[word]?.[1], children }) {
  const [spot, setSpot] = useState(null);
  const link = useRef(null);
  const id = useId();
  const show = () => {
    const box = link.current.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, innerWidth - WIDTH - 16));
    setSpot(box.bottom > innerHeight - 160 ? { left, bottom: innerHeight - box.top } : { left, top: box.bottom });
  };
  const hide = () => setSpot(null);
  const px = (value) => (value === undefined ? "auto" : `${value}px`);
  return html`<span class="term" onMouseEnter=${show} onMouseLeave=${hide} onKeyDown=${(event) => event.key === "Escape" && hide()}>
    <a ref=${link} href=${to("help", null, { word })} aria-describedby=${spot ? id : null} onFocus=${show} onBlur=${hide}>${children ?? WORDS[word][0]}</a>
    ${spot && html`<span class="term-text" role="tooltip" id=${id} style=${{ left: px(spot.left), top: px(spot.top), bottom: px(spot.bottom) }}>${text}</span>`}</span>`;
}
