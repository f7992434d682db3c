// The page: settings, the conversation, and one answer at a time. Text only ever becomes text nodes.

const at = (id) => document.getElementById(id);
const view = {
  clear: at("clear"), empty: at("empty"), form: at("form"), key: at("key"), log: at("log"),
  maxTokens: at("max-tokens"), model: at("model"), note: at("models-note"), prompt: at("prompt"),
  scroller: at("scroller"), send: at("send"), settings: at("settings"), status: at("status"), stop: at("stop"),
  system: at("system"), temperature: at("temperature"), toggle: at("toggle"),
};

let turns = []; // what the model is told: { role, content }
let running = null; // the AbortController of the answer that is being written

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// --- what this tab remembers ---

function remembered(name) {
  try {
    return sessionStorage.getItem(`headrace.${name}`) ?? "";
  } catch {
    return ""; // storage is switched off: nothing is remembered
  }
}

function remember(name, value) {
  try {
    if (value) sessionStorage.setItem(`headrace.${name}`, value);
    else sessionStorage.removeItem(`headrace.${name}`);
  } catch {
    // storage is switched off: nothing is remembered
  }
}

const key = () => view.key.value.trim();

// --- models ---

let lastListing = 0;

async function listModels() {
  const listing = ++lastListing;
  try {
    const response = await ask("/v1/models", key());
    const names = parsed(await response.text())?.data?.map((model) => model.id) ?? [];
    if (listing === lastListing) showModels(names, names.length ? "" : "This gateway has no models.");
  } catch (error) {
    if (listing !== lastListing) return;
    const missing = error.kind === "key" && !key();
    showModels([], missing ? "Enter your API key to see the models." : error.message, !missing);
    if (error.kind === "key") askForKey();
  }
}

function showModels(names, note, bad = false) {
  const wanted = view.model.value || remembered("model");
  view.model.replaceChildren(...(names.length ? names : [""]).map((name) => new Option(name || "No models yet", name)));
  if (names.includes(wanted)) view.model.value = wanted;
  view.model.disabled = names.length === 0;
  view.note.textContent = note;
  view.note.classList.toggle("bad", bad);
}

function askForKey() {
  openSettings(true);
  if (running === null) view.key.focus();
}

function openSettings(open) {
  view.settings.classList.toggle("open", open);
  view.toggle.setAttribute("aria-expanded", String(open));
}

// --- the conversation ---

function atBottom() {
  return view.scroller.scrollHeight - view.scroller.scrollTop - view.scroller.clientHeight < 60;
}

function follow(change) {
  const stay = atBottom();
  change();
  if (stay) view.scroller.scrollTop = view.scroller.scrollHeight;
}

function addUserTurn(text) {
  const turn = element("article", "turn user");
  turn.append(element("h2", "hidden", "You"), element("div", "text", text));
  view.log.append(turn);
  view.scroller.scrollTop = view.scroller.scrollHeight;
}

class AnswerView {
  constructor(model) {
    this.turn = element("article", "turn assistant streaming");
    this.text = element("div", "text");
    this.figures = element("p", "figures");
    this.text.setAttribute("aria-busy", "true");
    this.turn.append(element("h2", "who", model), this.text, this.figures);
    this.thinking = null;
    view.log.append(this.turn);
    view.scroller.scrollTop = view.scroller.scrollHeight;
  }

  show(answer) {
    follow(() => {
      if (answer.thinking) this.#thought(answer.thinking);
      grow(this.text, answer.text);
      this.figures.textContent = answer.figures;
    });
  }

  #thought(text) {
    if (this.thinking === null) {
      const details = element("details", "thinking");
      this.thinking = element("div", "");
      details.append(element("summary", "", "Thinking"), this.thinking);
      this.text.before(details);
    }
    grow(this.thinking, text);
  }

  end(answer, problem) {
    this.show(answer);
    this.turn.classList.remove("streaming");
    this.text.removeAttribute("aria-busy");
    if (problem === null) return;
    follow(() => {
      const box = element("div", problem.kind === "note" ? "problem mild" : "problem", problem.message);
      if (problem.detail) box.append(element("small", "", problem.detail));
      this.turn.append(box);
      if (problem.kind !== "note") this.turn.append(this.#again());
    });
  }

  #again() {
    const button = element("button", "again", "Try again");
    button.type = "button";
    button.addEventListener("click", () => {
      if (running !== null || view.log.lastElementChild !== this.turn) return;
      this.turn.remove();
      if (turns.at(-1)?.role === "assistant") turns.pop();
      answerTurns();
    });
    return button;
  }
}

// Appends what is new, so that a selection in the text survives.
function grow(node, text) {
  const shown = node.textContent.length;
  if (text.length > shown) node.append(text.slice(shown));
  node.normalize();
}

// --- asking ---

function numberIn(input) {
  if (!input.checkValidity()) {
    openSettings(true);
    input.reportValidity();
    return null;
  }
  return input.value === "" ? undefined : input.valueAsNumber;
}

function requestFor(model) {
  const temperature = numberIn(view.temperature);
  const maxTokens = numberIn(view.maxTokens);
  if (temperature === null || maxTokens === null) return null;
  const system = view.system.value.trim();
  return {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    temperature,
    max_tokens: maxTokens,
    stream: true,
    stream_options: { include_usage: true },
  };
}

function submit() {
  const text = view.prompt.value.trim();
  if (!text || running !== null) return;
  if (!view.model.value) {
    view.status.textContent = "There is no model to ask yet.";
    askForKey();
    return;
  }
  turns.push({ role: "user", content: text });
  if (requestFor(view.model.value) === null) {
    turns.pop();
    return;
  }
  view.empty.hidden = true;
  openSettings(false);
  view.prompt.value = "";
  fit();
  addUserTurn(text);
  answerTurns();
}

async function answerTurns() {
  const request = requestFor(view.model.value);
  if (request === null) return;
  const controller = new AbortController();
  setRunning(controller);
  const answer = new Answer();
  const shown = new AnswerView(request.model);
  let scheduled = 0;
  const changed = () => {
    scheduled ||= requestAnimationFrame(() => {
      scheduled = 0;
      shown.show(answer);
    });
  };
  let problem = null;
  try {
    await answer.read(request, key(), controller.signal, changed);
    if (!answer.started) problem = new Problem("note", "The model said nothing.");
    if (!answer.finished) problem = new Problem("cut", "The answer is incomplete: the stream ended early.");
  } catch (error) {
    problem = error.name === "AbortError" ? new Problem("note", "You stopped this answer.") : asProblem(error);
  }
  cancelAnimationFrame(scheduled);
  if (controller !== running) return; // the conversation was cleared meanwhile
  if (answer.text) turns.push({ role: "assistant", content: answer.text });
  shown.end(answer, problem);
  setRunning(null);
  view.status.textContent = problem?.message ?? `Answer complete. ${answer.figures}`;
  if (problem?.kind === "key") askForKey();
}

function asProblem(error) {
  return error instanceof Problem ? error : new Problem("fault", "The page failed to show this answer.", String(error));
}

function setRunning(controller) {
  const hadFocus = [view.stop, view.send].includes(document.activeElement);
  running = controller;
  view.send.hidden = controller !== null;
  view.stop.hidden = controller === null;
  view.log.setAttribute("aria-busy", String(controller !== null));
  if (controller !== null) view.status.textContent = "Answering…";
  if (hadFocus) view.prompt.focus();
}

function clear() {
  const left = running;
  setRunning(null);
  left?.abort();
  turns = [];
  view.log.replaceChildren();
  view.empty.hidden = false;
  view.status.textContent = "";
  view.prompt.focus();
}

function fit() {
  view.prompt.style.height = "auto";
  view.prompt.style.height = `${view.prompt.scrollHeight}px`;
}

// --- wiring ---

view.form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
view.prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
view.prompt.addEventListener("input", fit);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
view.stop.addEventListener("click", () => running?.abort());
view.clear.addEventListener("click", clear);
view.toggle.addEventListener("click", () => openSettings(!view.settings.classList.contains("open")));
view.model.addEventListener("change", () => remember("model", view.model.value));
view.key.addEventListener("change", () => {
  remember("key", key());
  listModels();
});

view.key.value = remembered("key");
view.prompt.focus();
listModels();
