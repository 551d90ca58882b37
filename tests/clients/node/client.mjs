// One version of the official client, for `node SCRIPT VERSION URL KEY`, and what its scripts share.

const [version, baseURL, apiKey] = process.argv.slice(2);
const { OpenAI, toFile, ...errors } = await import(version);
const isOld = version === "openai4";

export { errors, toFile };
export const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 20_000 });
export const { assistants, threads } = client.beta;
export const { messages, runs } = threads;

// Version 4 takes the ids of a path in its order; later ones take the last, and the others by name.
export function call(resource, method, path, body) {
  if (isOld) return resource[method === "delete" ? "del" : method](...path, ...(body ? [body] : []));
  const [thread_id, run_id] = path;
  const id = path.at(-1);
  if (path.length === 1) return resource[method](id, ...(body ? [body] : []));
  return resource[method](id, path.length === 2 ? { thread_id, ...body } : { thread_id, run_id, ...body });
}

export const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { enum: ["Rome", "Oslo"] } }, required: ["city"] },
  },
};
export const asks = (content) => [{ role: "user", content }];
export const text = (message) => message.content[0].text.value;
export const outputs = (run, output) =>
  run.required_action.submit_tool_outputs.tool_calls.map((each) => ({ tool_call_id: each.id, output }));
