// The server's routes: the key, plain requests, and answers as they are written.

const KEY = "lorica.key";
const BROKEN = "The connection broke before the answer was whole.";

/** What a request was refused with. `status` 0: the server was not reached. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  keep: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** { base: id, adapters: [id] }; no base where an adapter is merged into it. */
export async function models() {
  const { data } = await json("/v1/models");
  const base = data.find((model) => !model.parent);
  return { base: base?.id ?? "", adapters: data.filter((model) => model.parent).map((model) => model.id) };
}

export const adapters = async () => (await json("/v1/adapters")).data;

/** Of the engine; a server of encoders has none. */
export const stats = async () => (await json("/v1/stats")).engine;

/** What is written to a prompt: yields { text, usage }.  Read to the end, so that the server sees no one leave. */
export async function* written(kind, body, signal) {
  const path = kind === "chat" ? "/v1/chat/completions" : "/v1/completions";
  const response = await send(path, { method: "POST", body: JSON.stringify(body), signal });
  let whole = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      whole = true;
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(500, chunk.error.message);
    const [choice] = chunk.choices ?? [];
    yield { text: choice?.text ?? choice?.delta?.content ?? "", usage: chunk.usage };
  }
  if (!whole) throw new Refused(0, BROKEN);
}

/** The data of server-sent events; an event ends at an empty line. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(broken);
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

function broken(error) {
  throw error.name === "AbortError" ? error : new Refused(0, BROKEN);
}

async function json(path) {
  return (await send(path, {})).json();
}

async function send(path, options) {
  const headers = { Authorization: `Bearer ${key.get() ?? ""}` };
  if (options.body) headers["Content-Type"] = "application/json";
  const response = await reach(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options, headers });
  if (response.ok) return response;
  throw new Refused(response.status, await complaint(response));
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer; is it still running?");
  }
}

async function complaint(response) {
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? `The server answered ${response.status}.`;
  const wait = response.headers.get("Retry-After");
  return wait ? `${message} Try again in ${wait} s.` : message;
}
