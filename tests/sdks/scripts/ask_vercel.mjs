// Vercel's AI SDK: by chats (openai-compatible), responses (openai) and messages (anthropic). Prints what it saw as JSON.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false; // they would stand before what we print
const { GATEWAY, KEY, MODEL } = process.env;
const QUESTION = "Count to three.";

const dialects = {
  chat: (key) => createOpenAICompatible({ name: "headrace", baseURL: `${GATEWAY}/v1`, apiKey: key, includeUsage: true }),
  responses: (key) => createOpenAI({ baseURL: `${GATEWAY}/v1`, apiKey: key }),
  messages: (key) => createAnthropic({ baseURL: `${GATEWAY}/v1`, apiKey: key }),
};

const tools = {
  get_temperature: tool({
    description: "How warm it is in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `21 degrees in ${city}`,
  }),
};
const weather = { prompt: "How warm is it in Oslo?", tools, stopWhen: stepCountIs(3) };

async function whole(model) {
  const { text, usage } = await generateText({ model, prompt: QUESTION });
  return { text, usage: [usage.inputTokens, usage.outputTokens] };
}

async function stream(model, prompt = QUESTION) {
  const pieces = [];
  for await (const part of streamText({ model, prompt, onError() {} }).fullStream) {
    if (part.type === "text-delta") pieces.push(part.text);
    if (part.type === "error") return { pieces, ...told(part.error) };
  }
  return { pieces };
}

async function withTools(model, ask) {
  const result = await ask({ model, ...weather });
  const [step] = await result.steps;
  const [{ toolName, input }] = step.toolCalls;
  return { text: await result.text, call: [toolName, input] };
}

function told(error) {
  const text = error?.message ?? JSON.stringify(error);
  return { error: error?.name ?? typeof error, text, status: error?.statusCode ?? null };
}

const works = (provider) => ({
  whole: () => whole(provider(KEY)(MODEL)),
  stream: () => stream(provider(KEY)(MODEL)),
  tools: () => withTools(provider(KEY)(MODEL), generateText),
  streamed_tools: () => withTools(provider(KEY)(MODEL), streamText),
  unknown_model: () => whole(provider(KEY)("gpt-99")),
  wrong_key: () => whole(provider("hr-wrong")(MODEL)),
  cut: () => stream(provider(KEY)(MODEL), "break off"),
});

const found = {};
for (const [dialect, provider] of Object.entries(dialects)) {
  found[dialect] = {};
  for (const [kind, work] of Object.entries(works(provider))) found[dialect][kind] = await work().catch(told);
}
console.log(JSON.stringify(found));
