// What the server holds and does: throughput, memory, adapters; read every two seconds while the page is seen.

import * as api from "./api.js";

const EVERY = 2000;
const KEPT = 60;
const [WIDE, HIGH] = [240, 48];
const at = (id) => document.getElementById(id);

export class Figures {
  /** `told` hears of adapters that came or went, `refused` of an error. */
  constructor(told, refused) {
    Object.assign(this, { told, refused, rates: [], before: null, names: "" });
    document.addEventListener("visibilitychange", () => this.timer !== undefined && this.start());
  }

  start() {
    clearTimeout(this.timer);
    this.timer = null;
    if (!document.hidden) this.read();
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = this.before = undefined;
    this.rates = [];
  }

  async read() {
    try {
      const [stats, adapters] = await Promise.all([api.stats(), api.adapters()]);
      if (this.timer === undefined) return;
      at("figures-error").textContent = "";
      this.rate(stats);
      load(stats);
      memory(stats);
      shelf(adapters);
      this.compare(adapters);
    } catch (error) {
      if (this.timer === undefined) return;
      if (error.status === 401) return this.refused(error);
      say(at("figures-error"), error.message);
    }
    this.timer = setTimeout(() => this.read(), EVERY);
  }

  /** Tokens written since the last reading, by the seconds between. */
  rate(stats) {
    const now = { at: performance.now(), tokens: stats.written ?? 0 };
    const { before } = this;
    this.before = now;
    if (!before || now.tokens < before.tokens) return;
    const rate = ((now.tokens - before.tokens) * 1000) / (now.at - before.at);
    this.rates = [...this.rates, rate].slice(-KEPT);
    at("rate").textContent = count(Math.round(rate));
    draw(this.rates);
  }

  compare(adapters) {
    const names = adapters.filter(ready).map((each) => each.id).join(" ");
    if (this.names && names !== this.names) this.told();
    this.names = names;
  }
}

function ready(adapter) {
  return adapter.state === "ready";
}

function load(stats) {
  facts(at("load"), { running: count(stats.running), waiting: count(stats.waiting) });
}

function memory(stats) {
  const { blocks_used: used = 0, blocks_kept: kept = 0, blocks_free: free = 0 } = stats;
  const most = used + kept + free;
  const rows = [
    ["Adapters", size(stats.resident_bytes ?? 0)],
    ["Cache in use", `${count(used)} of ${count(most)} blocks`, used, most],
    ["Kept for reuse", `${count(kept)} blocks`],
    ["Reused so far", `${count(stats.reused)} tokens`],
  ];
  const place = at("memory");
  while (place.children.length > rows.length) place.lastElementChild.remove();
  rows.forEach((row, number) => held_in(place, number, row));
}

function held_in(place, number, [name, text, value, most]) {
  const line = place.children[number] ?? place.appendChild(made("div", "held", made("span"), made("span")));
  const [label, said] = line.children;
  say(label, name);
  say(said, text);
  let meter = line.querySelector("meter");
  if (most === undefined) return meter?.remove();
  meter ??= line.appendChild(document.createElement("meter"));
  Object.assign(meter, { min: 0, max: Math.max(most, 1), value });
  meter.setAttribute("aria-label", `${name}: ${text}`);
}

function shelf(adapters) {
  const place = at("shelf");
  at("shelf-empty").hidden = adapters.length > 0;
  while (place.children.length > adapters.length) place.lastElementChild.remove();
  adapters.forEach((adapter, number) => {
    const line = place.children[number] ?? place.appendChild(at("shelved").content.firstElementChild.cloneNode(true));
    line.dataset.state = adapter.state;
    const flight = adapter.in_flight;
    say(line.querySelector("code"), adapter.id);
    say(line.querySelector(".state"), flight ? `${count(flight)} in flight` : adapter.state);
    say(line.querySelector(".about"), about(adapter));
  });
}

function about(adapter) {
  const parts = [`gen\u00a0${adapter.generation}`];
  if (adapter.rank) parts.push(`rank\u00a0${adapter.rank}`);
  if (adapter.bytes) parts.push(size(adapter.bytes));
  if (adapter.tier) parts.push(adapter.tier);
  return parts.join(" · ");
}

function draw(rates) {
  const most = Math.max(...rates, 1);
  const step = WIDE / (KEPT - 1);
  const points = rates.map((rate, number) => {
    const x = WIDE - (rates.length - 1 - number) * step;
    return `${x.toFixed(1)},${(HIGH - 2 - (rate / most) * (HIGH - 6)).toFixed(1)}`;
  });
  const [area, line] = at("spark").children;
  const start = (WIDE - (rates.length - 1) * step).toFixed(1);
  line.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
  area.setAttribute("d", points.length > 1 ? `M${start},${HIGH}L${points.join("L")}L${WIDE},${HIGH}Z` : "");
  at("spark").setAttribute(
    "aria-label",
    `Tokens a second over the last two minutes: now ${count(Math.round(rates.at(-1)))}, at most ${count(Math.round(most))}`,
  );
}

function facts(place, entries) {
  const pairs = Object.entries(entries);
  if (place.children.length !== 2 * pairs.length) {
    place.replaceChildren(...pairs.flatMap(() => [made("dt"), made("dd")]));
  }
  pairs.forEach(([name, value], number) => {
    say(place.children[2 * number], name);
    say(place.children[2 * number + 1], value);
  });
}

function made(tag, name = "", ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

/** Only what changes is written, so that a reader is not told the same again. */
function say(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

function count(number) {
  return new Intl.NumberFormat("en").format(number ?? 0);
}

/** Decimal units, as everywhere in Lorica. */
function size(bytes) {
  const units = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]];
  const [unit, name] = units.find(([each]) => bytes >= each) ?? [1, "B"];
  return `${(bytes / unit).toFixed(bytes / unit < 10 && unit > 1 ? 1 : 0)} ${name}`;
}
