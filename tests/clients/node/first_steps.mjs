// What an app does first: a run that is polled, one that is streamed, one that needs a tool of the app. Prints
// what came of them as JSON.
//
//     node first_steps.mjs openai4 http://127.0.0.1:8000/v1 KEY

import assert from "node:assert/strict";
import { asks, assistants, call, messages, outputs, runs, text, threads, weather } from "./client.mjs";

const MOST_CALLS = 5; // a small model may want to know it again before it answers
const { id: assistant_id } = await assistants.create({ model: "gpt-4o" });

async function polled() {
  const thread = await threads.create({ messages: asks("Say hello.") });
  const run = await runs.createAndPoll(thread.id, { assistant_id });
  return { status: run.status, said: text((await messages.list(thread.id)).data[0]) };
}

async function streamed() {
  const thread = await threads.create({ messages: asks("Say hello.") });
  const stream = runs.stream(thread.id, { assistant_id });
  let deltas = 0;
  stream.on("textDelta", () => deltas++);
  const [message] = await stream.finalMessages();
  assert.equal(text(message), text((await messages.list(thread.id)).data[0]));
  return { status: (await stream.finalRun()).status, deltas, said: text(message) };
}

async function withATool() {
  const thread = await threads.create({ messages: asks("What is the weather in Rome?") });
  const tool_choice = { type: "function", function: { name: "weather" } };
  let run = await runs.createAndPoll(thread.id, { assistant_id, tools: [weather], tool_choice });
  const made = run.required_action.submit_tool_outputs.tool_calls[0].function;
  for (let calls = 0; run.status === "requires_action" && calls < MOST_CALLS; calls++) {
    const body = { tool_outputs: outputs(run, "sunny") };
    run = await call(runs, "submitToolOutputsAndPoll", [thread.id, run.id], body);
  }
  return { status: run.status, name: made.name, arguments: JSON.parse(made.arguments) };
}

console.log(JSON.stringify({ polled: await polled(), streamed: await streamed(), withATool: await withATool() }));
