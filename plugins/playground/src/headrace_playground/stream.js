// Server-sent events out of a fetch response, and what the gateway says when it refuses.
// Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

class EventParser {
  #decoder = new TextDecoder(); // keeps the bytes of a character that is not whole yet; drops a leading BOM
  #rest = "";
  #data = [];

  // Returns the data of every event that these bytes complete.
  feed(bytes) {
    const text = this.#rest + this.#decoder.decode(bytes, { stream: true });
    // A carriage return at the end may be half of a line end.
    const held = text.endsWith("\r") ? 1 : 0;
    const lines = text.slice(0, text.length - held).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + text.slice(text.length - held);
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return events;
  }
}

// A problem to show: `words` for people, `kind` to act on.
class Problem extends Error {
  constructor(kind, words, detail = "") {
    super(words);
    this.kind = kind;
    this.detail = detail;
  }
}

async function* eventsOf(response) {
  const parser = new EventParser();
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.feed(value);
    }
  } finally {
    reader.cancel().catch(() => {}); // it has ended, or its end no longer matters
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// OpenAI's envelope has an object, some servers a string.
function messageIn(document) {
  const error = document?.error;
  const message = typeof error === "string" ? error : error?.message;
  return typeof message === "string" ? message : "";
}

async function problemOf(response) {
  const message = messageIn(parsed(await response.text().catch(() => "")));
  const id = response.headers.get("x-request-id");
  const detail = [`Status ${response.status}`, id && `request ${id}`].filter(Boolean).join(", ");
  return new Problem(response.status === 401 ? "key" : "refused", wordsFor(response, message), detail);
}

function wordsFor(response, message) {
  switch (response.status) {
    case 401:
      return message || "This gateway asks for an API key.";
    case 403:
      return message || "This key may not do that.";
    case 404:
      return message || "There is no such model.";
    case 413:
      return message || "This conversation is too long for the gateway.";
    case 429: {
      const wait = response.headers.get("retry-after");
      return (message || "Too many requests.") + (/^\d+$/.test(wait ?? "") ? ` Try again in ${wait} s.` : "");
    }
    default:
      return message || (response.status >= 500 ? "The gateway or its backend failed." : "The request was refused.");
  }
}

async function ask(path, key, options = {}) {
  if (/[^\x21-\x7e]/.test(key)) throw new Problem("key", "The API key has characters that no key has: copy it again.");
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("network", "The gateway cannot be reached.", error.message);
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}
