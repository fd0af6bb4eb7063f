// The page at /: the key once, one or two adapters, one prompt, their answers side by side, and a blend of the two.

import * as api from "./api.js";
import { Answer, blended, choose } from "./answers.js";
import { Figures } from "./figures.js";

const NONE = "";
const PAUSE = 250;
const REMEMBERED = ["first", "second", "max-tokens", "temperature", "seed"];
const at = (id) => document.getElementById(id);
const answers = new Map();
let base = "";
let asked = null;
let pending;

const figures = new Figures(() => offer(), (error) => close(error.message));

async function open() {
  if (!api.key.get()) return close();
  try {
    await offer();
  } catch (error) {
    return close(error.status === 401 ? "The server does not accept this key." : error.message);
  }
  at("door").hidden = true;
  for (const id of ["room", "forget", "serving"]) at(id).hidden = false;
  figures.start();
  at("prompt").focus();
}

/** The way out of the room: the key is forgotten, and what was wrong with it is said. */
function close(problem = "") {
  api.key.forget();
  figures.stop();
  stop();
  for (const id of ["room", "forget", "serving"]) at(id).hidden = true;
  at("door").hidden = false;
  at("door-error").textContent = problem;
  at("key").setAttribute("aria-invalid", String(problem !== ""));
  at("key").value = "";
  at("key").focus();
}

/** The choices that the server has now; what was chosen stays chosen while it is there. */
async function offer() {
  const found = await api.models();
  base = found.base;
  at("base-name").textContent = base;
  const names = base ? [base, ...found.adapters] : found.adapters;
  fill(at("first"), names, at("first").value || recalled("first") || names[1] || names[0]);
  fill(at("second"), [NONE, ...names], at("second").dataset.filled ? at("second").value : recalled("second") ?? names[2] ?? names[0]);
  at("second").dataset.filled = "yes";
  arrange();
}

function fill(select, names, chosen) {
  const label = (name) => (name === NONE ? "none" : name === base ? `${name} (base)` : name);
  select.replaceChildren(...names.map((name) => new Option(label(name), name)));
  select.value = names.includes(chosen) ? chosen : (base || names[0]);
}

/** A card for each answer that is chosen, the blend between the two last. */
function arrange() {
  const [first, second] = [at("first").value, at("second").value];
  const two = second !== NONE && second !== first;
  at("blend").disabled = !two;
  at("weight").disabled = !two || !at("blend").checked;
  if (!two) at("blend").checked = false;
  say();
  const wanted = choices();
  for (const [tone, answer] of answers) if (!wanted.has(tone)) drop(tone, answer);
  for (const [tone, choice] of wanted) {
    if (!answers.has(tone)) answers.set(tone, new Answer(at("answers"), tone));
    if (tone !== "blend") answers.get(tone).show(choice);
  }
  at("answers").dataset.count = wanted.size;
}

function drop(tone, answer) {
  answer.remove();
  answers.delete(tone);
}

/** tone -> choice */
function choices() {
  const [first, second] = [at("first").value, at("second").value];
  const found = new Map([["first", choose(base, first)]]);
  if (second !== NONE) found.set("second", choose(base, second));
  if (at("blend").checked) found.set("blend", blended(base, first, second, at("weight").value / 100));
  return found;
}

/** What the slider means. */
function say() {
  const [first, second, share] = [at("first").value, at("second").value, Number(at("weight").value)];
  const text = `${share} % ${first}, ${100 - share} % ${second}`;
  at("weight").setAttribute("aria-valuetext", text);
  at("weight").setAttribute("aria-label", `Share of ${first}`);
  const why = second === first ? "Choose two that differ." : "Choose a second answer.";
  at("blend-why").textContent = at("blend").disabled ? why : text;
  const card = answers.get("blend");
  if (card && at("blend").checked) card.title.textContent = blended(base, first, second, share / 100).name;
}

async function ask(tones) {
  if (!at("ask").reportValidity()) return;
  const prompt = at("prompt").value;
  if (!prompt) {
    at("status").textContent = "The prompt is empty.";
    return at("prompt").focus();
  }
  asked = request(prompt);
  at("stop").disabled = false;
  at("status").textContent = "Answers are being written.";
  const wanted = [...choices()].filter(([tone]) => !tones || tones.includes(tone));
  const round = (ask.round = {});
  const ends = await Promise.all(
    wanted.map(([tone, choice]) => answers.get(tone).ask(asked.kind, asked.body, choice, base)),
  );
  at("stop").disabled = ![...answers.values()].some((answer) => answer.writing);
  if (ask.round !== round) return;
  at("status").textContent = ends.filter(Boolean).join(". ");
  const refused = wanted.map(([tone]) => answers.get(tone)?.refused).find((error) => error?.status === 401);
  if (refused) close("The server no longer accepts this key.");
}

/** { kind, body }: what every answer is asked. */
function request(prompt) {
  const kind = document.querySelector("input[name=kind]:checked").value;
  const said = kind === "chat" ? { messages: [{ role: "user", content: prompt }] } : { prompt };
  const [max_tokens, temperature, seed] = ["max-tokens", "temperature", "seed"].map((id) => Number(at(id).value));
  return { kind, body: { ...said, max_tokens, temperature, seed } };
}

function stop() {
  clearTimeout(pending);
  for (const answer of answers.values()) answer.stop();
}

/** A moved slider asks the blend anew, once it rests. */
function again() {
  say();
  clearTimeout(pending);
  if (asked) pending = setTimeout(() => ask(["blend"]), PAUSE);
}

function recalled(id) {
  return sessionStorage.getItem(`lorica.${id}`);
}

function remember() {
  for (const id of REMEMBERED) sessionStorage.setItem(`lorica.${id}`, at(id).value);
}

function listen() {
  at("door-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.key.keep(at("key").value.trim());
    open();
  });
  at("forget").addEventListener("click", () => close());
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    remember();
    ask();
  });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    at("ask").requestSubmit();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  at("stop").addEventListener("click", stop);
  for (const id of ["first", "second"]) at(id).addEventListener("change", arrange);
  at("blend").addEventListener("change", () => {
    arrange();
    if (at("blend").checked) again();
  });
  at("weight").addEventListener("input", say);
  at("weight").addEventListener("change", again);
}

for (const id of REMEMBERED.slice(2)) at(id).value = recalled(id) ?? at(id).value;
listen();
open();
