// One conversation of OpenAI's node client with the gateway: `node talk.mjs KIND MODEL`. Prints what it saw as JSON.
import OpenAI from "openai";

const [kind, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: process.env.URL, apiKey: process.env.KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "Write a short story about the sea." }];
const short = { model, max_tokens: 12, temperature: 0 };

const kinds = {
  async models() {
    const names = [];
    for await (const each of client.models.list()) names.push(each.id);
    return { names };
  },
  async chat() {
    const answer = await client.chat.completions.create({ ...short, messages });
    return { text: answer.choices[0].message.content, usage: answer.usage, id: answer._request_id };
  },
  async completion() {
    const answer = await client.completions.create({ ...short, prompt: "One, two," });
    return { text: answer.choices[0].text };
  },
  async stream() {
    const options = { ...short, messages, stream: true, stream_options: { include_usage: true } };
    const pieces = [];
    let usage = null;
    let reason = null;
    for await (const chunk of await client.chat.completions.create(options)) {
      if (chunk.choices[0]?.delta?.content) pieces.push(chunk.choices[0].delta.content);
      reason = chunk.choices[0]?.finish_reason ?? reason;
      usage = chunk.usage ?? usage;
    }
    return { pieces, usage, reason };
  },
  async error() {
    return failure(() => client.chat.completions.create({ ...short, messages }));
  },
  async key() {
    const stranger = new OpenAI({ baseURL: process.env.URL, apiKey: "hr-wrong", maxRetries: 0 });
    return failure(() => stranger.models.list());
  },
  async cut() {
    const pieces = [];
    const seen = await failure(async () => {
      for await (const chunk of await client.chat.completions.create({ ...short, messages, stream: true })) {
        if (chunk.choices[0]?.delta?.content) pieces.push(chunk.choices[0].delta.content);
      }
    });
    return { pieces, ...seen };
  },
  async leave() {
    const stream = await client.chat.completions.create({ ...short, messages, stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta?.content) break;
    }
    return { aborted: stream.controller.signal.aborted };
  },
};

async function failure(call) {
  try {
    await call();
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, code: error.code ?? null, message: error.message };
  }
  return { name: null };
}

console.log(JSON.stringify(await kinds[kind]()));
