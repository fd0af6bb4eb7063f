// One answer: who gives it, its text as it is written, and how fast.

import { written } from "./api.js";

/** A choice is { name, adapters: [{ name, weight }] }: no adapters is the base, one with weight 1 is an adapter. */
export function choose(base, name) {
  return { name, adapters: name === base ? [] : [{ name, weight: 1 }] };
}

/** `share` of the first in [0, 1], and the rest of the second; the base has no delta, so it takes no place. */
export function blended(base, first, second, share) {
  const parts = [[first, share], [second, 1 - share]];
  const adapters = parts
    .filter(([name, weight]) => name !== base && weight > 0)
    .map(([name, weight]) => ({ name, weight: Number(weight.toFixed(2)) }));
  return { name: `${percent(share)} ${first} + ${percent(1 - share)} ${second}`, adapters };
}

/** The part of a request's body that says who answers. */
export function chosen(base, choice) {
  const [only] = choice.adapters;
  if (choice.adapters.length === 1 && only.weight === 1) return { model: only.name };
  return choice.adapters.length ? { model: base, adapters: choice.adapters } : { model: base };
}

export class Answer {
  constructor(place, tone) {
    const template = document.getElementById("answer");
    this.card = template.content.firstElementChild.cloneNode(true);
    this.card.dataset.tone = tone;
    [this.title, this.pace, this.text, this.error] = ["h3", ".pace", ".text", ".error"].map((each) =>
      this.card.querySelector(each),
    );
    this.title.id = `title-${tone}`;
    this.card.setAttribute("aria-labelledby", this.title.id);
    place.append(this.card);
  }

  /** Who will answer; what was written before is no answer of theirs. */
  show(choice) {
    if (this.title.textContent === choice.name) return;
    this.stop();
    this.title.textContent = choice.name;
    this.clear();
  }

  clear() {
    this.text.textContent = this.pace.textContent = this.error.textContent = "";
    this.card.dataset.state = "empty";
  }

  get writing() {
    return this.card.dataset.state === "writing";
  }

  remove() {
    this.stop();
    this.card.remove();
  }

  stop() {
    this.running?.abort();
  }

  /** Asks, and writes what comes. Gives one sentence that says how it ended, or nothing where another took its place. */
  async ask(kind, body, choice, base) {
    this.stop();
    this.refused = null;
    const running = (this.running = new AbortController());
    this.title.textContent = choice.name;
    this.clear();
    this.card.dataset.state = "writing";
    this.text.setAttribute("aria-busy", "true");
    const pace = new Pace();
    try {
      const request = { ...body, ...chosen(base, choice), stream: true, stream_options: { include_usage: true } };
      for await (const { text, usage } of written(kind, request, running.signal)) {
        if (text) this.text.append(text);
        this.pace.textContent = pace.after(text, usage);
      }
      return this.ended(running, "done", `${choice.name}: ${pace}`);
    } catch (error) {
      if (error.name === "AbortError") return this.ended(running, "stopped", `${choice.name}: stopped`);
      this.refused = error;
      this.ended(running, "failed", "");
      this.error.textContent = error.message;
      return "";
    }
  }

  ended(running, state, sentence) {
    if (this.running !== running) return "";
    this.card.dataset.state = state;
    this.text.setAttribute("aria-busy", "false");
    return sentence;
  }
}

/** Tokens, tokens a second after the first, and how long the first took. */
class Pace {
  constructor() {
    this.began = performance.now();
    this.first = this.last = null;
    this.tokens = 0;
  }

  after(text, usage) {
    if (text) {
      this.last = performance.now();
      this.first ??= this.last;
      this.tokens += 1;
    }
    if (usage) this.tokens = usage.completion_tokens;
    return String(this);
  }

  toString() {
    if (this.first === null) return this.tokens ? `${this.tokens} tokens` : "";
    const rate = this.tokens > 1 ? ((this.tokens - 1) * 1000) / Math.max(this.last - this.first, 1) : 0;
    const parts = [`${this.tokens} token${this.tokens === 1 ? "" : "s"}`];
    if (rate) parts.push(`${rate.toFixed(rate < 10 ? 1 : 0)}/s`);
    return [...parts, `first after ${Math.round(this.first - this.began)}\u00a0ms`].join(" · ");
  }
}

function percent(share) {
  return `${Math.round(100 * share)} %`;
}
