// The server's own API, as any client of it: JSON out, events in, each error with what to do.

/** An answer that did not come, in words: what happened, the server's own words, what to do. */
export class Failure extends Error {
  constructor(title, advice, { said = "", status = 0, wait = 0 } = {}) {
    super(title);
    Object.assign(this, { title, advice, said, status, wait });
  }
}

const SHORTER = "Edit an earlier message to be shorter, lower “Max tokens” in Settings, or begin anew.";
const WORDS = {
  400: ["The server does not take this request.", "Change what it names, then retry."],
  401: ["The server asks for a key.", "Enter the key that it was started with."],
  403: ["The server refuses this page's address.", "Open the page under the address that the server printed."],
  404: ["The server does not have this model.", "Reload the page: it may have been started with another."],
  413: ["This conversation is too long for the server.", SHORTER],
  429: ["The server is busy: its queue is full.", "Your message is kept."],
  503: ["The server takes no requests now: it starts or ends.", "Retry in a moment."],
};
const FAILED = ["The server failed at this request.", "Retry. If it fails again, the server's log says why."];
const SILENT = ["The server does not answer.", "See that it still runs, then retry. Your message is kept."];
const BROKEN = ["The connection broke before the answer ended.", "What came is kept. Retry to have it written again."];

/** The models that are served: `[{ id, chat, max_model_len }]`. */
export async function models(key) {
  const { data } = await (await ask("v1/models", { headers: headers(key) })).json();
  return data;
}

/** Why the server is not ready, in its own words; empty when it is, or does not say. */
export async function unready() {
  const answer = await fetch("ready", { cache: "no-store" }).then((response) => response.json(), () => ({}));
  return answer.error?.message ?? "";
}

/** The events of a streamed answer, parsed. Ends with the answer; throws a `Failure` else. */
export async function* events(path, body, key, signal) {
  const sent = { method: "POST", body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }) };
  const response = await ask(path, { ...sent, signal, headers: { "Content-Type": "application/json", ...headers(key) } });
  let ended = false;
  for await (const data of eventData(response.body.getReader())) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) {
      throw new Failure("The server failed in the midst of the answer.", FAILED[1], { said: event.error.message });
    }
    ended ||= Boolean(event.choices?.[0]?.finish_reason);
    yield event;
  }
  if (!ended) throw new Failure(...BROKEN);
}

async function ask(path, options) {
  let response = null;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure(...SILENT);
  }
  if (response.ok) return response;
  const { status } = response;
  const error = await response.json().then((answer) => answer.error ?? {}, () => ({}));
  let [title, advice] = WORDS[status] ?? FAILED;
  if (error.code === "context_length_exceeded") advice = SHORTER;
  const said = status === 401 ? "" : String(error.message ?? `HTTP ${status}`);
  throw new Failure(title, advice, { said, status, wait: Number(response.headers.get("Retry-After")) || 0 });
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

/** The `data` of each server-sent event. Comments, which keep a connection open, are left out. */
async function* eventData(reader) {
  const decoder = new TextDecoder();
  let text = "";
  let data = [];
  try {
    for (let done = false; !done; ) {
      let value = null;
      ({ done, value } = await reader.read());
      text += decoder.decode(value, { stream: !done });
      const lines = text.split(/\r\n|\n|\r(?!$)/);
      text = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw new Failure(...BROKEN);
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
}
