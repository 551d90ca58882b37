// Does all that an app can do over the Assistants wire, with one version of the official client, and prints
// what came of it as JSON. What the client refuses, or waits for in vain, ends it with another code than 0.
//
//     node everything.mjs openai4 http://127.0.0.1:8000/v1 KEY

import assert from "node:assert/strict";
import {
  asks, assistants, call, client, errors, messages, outputs, runs, text, threads, toFile, weather,
} from "./client.mjs";

const all = async (pages) => {
  const found = [];
  for await (const each of pages) found.push(each);
  return found;
};
const ids = (objects) => objects.map((each) => each.id);
const refusal = async (promise) => {
  const error = await promise.then(
    () => assert.fail("was not refused"),
    (error) => error,
  );
  assert(error instanceof errors.APIError, error);
  return { class: error.constructor.name, status: error.status, message: error.error.message };
};

async function models() {
  const listed = await all(await client.models.list());
  return { listed: ids(listed), retrieved: (await client.models.retrieve(listed[0].id)).id };
}

async function files() {
  const made = await client.files.create({
    file: await toFile(Buffer.from("a,b\n1,2\n"), "table.csv"),
    purpose: "assistants",
  });
  const read = await client.files.retrieve(made.id);
  assert.deepEqual(read, made);
  const listed = ids(await all(await client.files.list()));
  const content = await (await client.files.content(made.id)).text();
  const deleted = await call(client.files, "delete", [made.id]);
  return {
    name: made.filename,
    bytes: made.bytes,
    content,
    isListed: listed.includes(made.id),
    deleted: deleted.deleted,
    after: await refusal(client.files.retrieve(made.id)),
  };
}

async function ofAssistants() {
  const made = [];
  for (const name of ["one", "two", "three"]) made.push(await assistants.create({ model: "gpt-4o", name }));
  assert.deepEqual(await assistants.retrieve(made[0].id), made[0]);
  const changed = await assistants.update(made[0].id, { instructions: "Be kind.", metadata: { a: "b" } });
  const newest = await all(await assistants.list({ limit: 2 }));
  assert.deepEqual(ids(newest), ids(made).reverse());
  const deleted = [];
  for (const each of made) deleted.push((await call(assistants, "delete", [each.id])).deleted);
  return {
    changed: { name: changed.name, instructions: changed.instructions, metadata: changed.metadata },
    deleted,
    left: ids(await all(await assistants.list())),
    unknown: await refusal(assistants.retrieve(made[0].id)),
  };
}

async function ofThreads() {
  const empty = await threads.create();
  const changed = await threads.update(empty.id, { metadata: { who: "me" } });
  assert.deepEqual(await threads.retrieve(empty.id), changed);
  const made = [];
  for (const content of ["one", "two", "three"]) {
    made.push(await messages.create(empty.id, { role: "user", content, metadata: { n: content } }));
  }
  const read = await call(messages, "retrieve", [empty.id, made[1].id]);
  assert.deepEqual(read, made[1]);
  const updated = await call(messages, "update", [empty.id, made[1].id], { metadata: { n: "2" } });
  const pages = await all(await messages.list(empty.id, { limit: 1, order: "asc" }));
  const after = await messages.list(empty.id, { order: "asc", after: made[0].id });
  const before = await messages.list(empty.id, { order: "asc", before: made[1].id });
  const gone = await call(messages, "delete", [empty.id, made[2].id]);
  const newest = (await messages.list(empty.id, { limit: 1 })).data;
  const deleted = await call(threads, "delete", [empty.id]);
  return {
    metadata: [changed.metadata, updated.metadata],
    pages: pages.map(text),
    after: after.data.map(text),
    before: before.data.map(text),
    gone: gone.deleted,
    newest: newest.map(text),
    deleted: deleted.deleted,
    unknown: await refusal(threads.retrieve(empty.id)),
  };
}

async function ofRuns(assistant_id) {
  const thread = await threads.create({ messages: asks("Hello") });
  const made = await runs.create(thread.id, { assistant_id, metadata: { n: "1" } });
  const done = await call(runs, "poll", [thread.id, made.id]);
  const updated = await call(runs, "update", [thread.id, made.id], { metadata: { n: "2" } });
  assert.deepEqual(await call(runs, "retrieve", [thread.id, made.id]), updated);
  const second = await runs.createAndPoll(thread.id, {
    assistant_id,
    additional_messages: asks("Again"),
    additional_instructions: "Be brief.",
  });
  const listed = ids(await all(await runs.list(thread.id, { limit: 1 })));
  assert.deepEqual(listed, [second.id, made.id]);
  const steps = await all(await call(runs.steps, "list", [thread.id, second.id], { limit: 1 }));
  assert.deepEqual(await call(runs.steps, "retrieve", [thread.id, second.id, steps[0].id]), steps[0]);
  const said = await all(await messages.list(thread.id, { run_id: second.id }));
  return {
    made: made.status,
    done: done.status,
    usage: done.usage.total_tokens > 0,
    metadata: updated.metadata,
    steps: steps.map((each) => [each.type, each.status]),
    said: said.map(text),
    thread: (await all(await messages.list(thread.id, { order: "asc" }))).map(text),
  };
}

async function ofTools(assistant_id) {
  const thread = { messages: asks("weather") };
  const asked = await threads.createAndRunPoll({ assistant_id, thread, tools: [weather] });
  assert.equal(asked.status, "requires_action");
  const lock = [
    await refusal(messages.create(asked.thread_id, { role: "user", content: "Hey" })),
    await refusal(runs.create(asked.thread_id, { assistant_id })),
    await refusal(call(runs, "submitToolOutputs", [asked.thread_id, asked.id], { tool_outputs: [] })),
  ].map((each) => ({ ...each, message: each.message.replace(/(thread|run)_\w+/g, "$1") }));
  const body = { tool_outputs: outputs(asked, "sunny") };
  const queued = await call(runs, "submitToolOutputs", [asked.thread_id, asked.id], body);
  const done = await call(runs, "poll", [asked.thread_id, asked.id]);
  const again = await runs.createAndPoll(asked.thread_id, {
    assistant_id,
    additional_messages: asks("weather"),
    tools: [weather],
  });
  const rest = { tool_outputs: outputs(again, "snow") };
  const last = await call(runs, "submitToolOutputsAndPoll", [asked.thread_id, again.id], rest);
  const steps = await all(await call(runs.steps, "list", [asked.thread_id, again.id], { order: "asc" }));
  return {
    lock,
    call: asked.required_action.submit_tool_outputs.tool_calls[0].function,
    statuses: [queued.status, done.status, again.status, last.status],
    outputs: steps[0].step_details.tool_calls.map((each) => each.function.output),
    said: (await messages.list(asked.thread_id)).data.map(text),
  };
}

async function cancelled(assistant_id) {
  const thread = await threads.create({ messages: asks("forever") });
  const run = await runs.create(thread.id, { assistant_id });
  const told = await call(runs, "cancel", [thread.id, run.id]);
  assert(["cancelling", "cancelled"].includes(told.status), told.status);
  const done = await call(runs, "poll", [thread.id, run.id]);
  return { done: done.status, twice: await refusal(call(runs, "cancel", [thread.id, run.id])) };
}

const HELPERS = [
  "messageCreated", "messageDelta", "messageDone", "runStepCreated", "runStepDelta", "runStepDone",
  "toolCallCreated", "toolCallDelta", "toolCallDone", "textCreated", "textDelta", "textDone", "end",
];

// What a stream's handlers are called with, each row of equal names as one.
function heard(stream) {
  const names = [];
  const events = [];
  const note = (list, name) => list.at(-1) === name || list.push(name);
  for (const name of HELPERS) stream.on(name, () => note(names, name));
  stream.on("event", (event) => note(events, event.event));
  return { names, events };
}

async function streamed(assistant_id) {
  const thread = await threads.create({ messages: asks("Hello over there, dear stream") });
  const stream = runs.stream(thread.id, { assistant_id });
  const notes = heard(stream);
  let said = "";
  stream.on("textDelta", (delta, snapshot) => {
    said += delta.value;
    assert.equal(snapshot.value, said);
  });
  const run = await stream.finalRun();
  const final = await stream.finalMessages();
  const steps = await stream.finalRunSteps();
  assert.deepEqual(run, await call(runs, "retrieve", [thread.id, run.id]));
  assert.deepEqual(ids(final), ids((await messages.list(thread.id, { run_id: run.id })).data));
  assert.deepEqual(steps, (await call(runs.steps, "list", [thread.id, run.id])).data);
  return { ...notes, said, status: run.status, final: final.map(text) };
}

async function streamedWithItsThread(assistant_id) {
  const thread = { messages: asks("Hello") };
  const stream = threads.createAndRunStream({ assistant_id, thread });
  const events = [];
  for await (const event of stream) events.push(event.event);
  return { first: events[0], last: events.at(-1), said: (await stream.finalMessages()).map(text) };
}

async function plain(assistant_id) {
  const thread = { messages: asks("Hello") };
  const events = [];
  for await (const event of await threads.createAndRun({ assistant_id, thread, stream: true })) {
    events.push(event.event);
  }
  return { first: events[0], last: events.at(-1) };
}

async function handedInByAHandler(assistant_id) {
  const thread = await threads.create({ messages: asks("weather") });
  const stream = runs.stream(thread.id, { assistant_id, tools: [weather] });
  const notes = heard(stream);
  let args = "";
  stream.on("toolCallDelta", (delta, snapshot) => {
    args += delta.function?.arguments ?? "";
    assert.equal(snapshot.function.arguments, args);
  });
  const nested = new Promise((resolve, reject) => {
    stream.on("event", (event) => {
      if (event.event !== "thread.run.requires_action") return;
      const body = { tool_outputs: outputs(event.data, "fog") };
      const next = call(runs, "submitToolOutputsStream", [thread.id, event.data.id], body);
      const notes = heard(next);
      next.finalMessages().then(async (final) => {
        resolve({ ...notes, status: (await next.finalRun()).status, final: final.map(text) });
      }, reject);
    });
  });
  const first = await stream.finalRun();
  return { first: { ...notes, args, status: first.status }, nested: await nested };
}

async function aborted(assistant_id) {
  const thread = await threads.create({ messages: asks("slow") });
  const stream = runs.stream(thread.id, { assistant_id });
  let run = null;
  stream.on("event", (event) => {
    run ??= event.data.id;
    stream.abort();
  });
  const why = await stream.done().then(() => "nothing", (error) => error.constructor.name);
  const done = await call(runs, "poll", [thread.id, run]);
  return { why, done: done.status, said: text((await messages.list(thread.id)).data[0]) };
}

async function failed(assistant_id) {
  const thread = await threads.create({ messages: asks("fail") });
  const stream = runs.stream(thread.id, { assistant_id });
  const run = await stream.finalRun();
  return { status: run.status, code: run.last_error.code };
}

const results = { models: await models(), files: await files(), assistants: await ofAssistants() };
results.threads = await ofThreads();
const { id } = await assistants.create({ model: "gpt-4o", instructions: "Help." });
for (const part of [
  ofRuns, ofTools, cancelled, streamed, streamedWithItsThread, plain, handedInByAHandler, aborted, failed,
]) {
  results[part.name] = await part(id);
}
console.log(JSON.stringify(results));
