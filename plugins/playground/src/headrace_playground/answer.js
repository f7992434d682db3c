// One answer: asked for, read as it comes, measured.

class Answer {
  text = "";
  thinking = "";
  chunks = 0;
  usage = null;
  finished = false; // the stream said that it was complete
  #asked = performance.now();
  #first = null;
  #last = null;

  // `changed` is called after every piece of text. Throws Problem, or AbortError.
  async read(request, key, signal, changed) {
    const response = await ask("/v1/chat/completions", key, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request),
      signal,
    });
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
      this.#take(await this.#whole(response));
      this.finished = true;
      return;
    }
    try {
      await this.#stream(response, changed);
    } catch (error) {
      if (error instanceof Problem || error.name === "AbortError") throw error;
      throw new Problem("cut", "The connection broke before the answer was complete.", error.message);
    }
  }

  async #whole(response) {
    const document = parsed(await response.text());
    if (document === null) throw new Problem("cut", "The gateway's answer cannot be read.");
    return document;
  }

  async #stream(response, changed) {
    for await (const data of eventsOf(response)) {
      if (data === "[DONE]") {
        this.finished = true;
        return;
      }
      const event = parsed(data);
      if (event?.error) {
        throw new Problem("cut", messageIn(event) || "The backend failed while it answered.");
      }
      if (event && this.#take(event)) changed();
    }
  }

  // Adds what an event or a whole reply brings; says whether that was text.
  #take(event) {
    if (event.usage) this.usage = event.usage;
    const choice = event.choices?.[0];
    const part = choice?.delta ?? choice?.message;
    const text = typeof part?.content === "string" ? part.content : "";
    const thought = [part?.reasoning_content, part?.reasoning].find((value) => typeof value === "string") ?? "";
    if (!text && !thought) return false;
    this.text += text;
    this.thinking += thought;
    this.chunks += 1;
    this.#last = performance.now();
    this.#first ??= this.#last;
    return true;
  }

  get started() {
    return this.#first !== null;
  }

  // The tokens, and whether their number is only that of the chunks.
  get tokens() {
    const counted = this.usage?.completion_tokens;
    return Number.isInteger(counted) ? { count: counted, exact: true } : { count: this.chunks, exact: false };
  }

  // In words: time to the first token, tokens per second after it (once there is a time to speak of), tokens.
  get figures() {
    if (!this.started) return "";
    const { count, exact } = this.tokens;
    const about = exact ? "" : "≈ ";
    const figures = [`TTFT ${milliseconds(this.#first - this.#asked)}`];
    const seconds = (this.#last - this.#first) / 1000;
    if (count > 1 && seconds >= 0.05) figures.push(`${about}${((count - 1) / seconds).toFixed(1)} tokens/s`);
    figures.push(`${about}${count} ${count === 1 ? "token" : "tokens"}`);
    return figures.join(" · ");
  }
}

function milliseconds(value) {
  return value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}
