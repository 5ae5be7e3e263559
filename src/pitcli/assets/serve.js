const get = (id) => document.getElementById(id);
const REASONS = {
  not_better: "the next proposal was not better", copy: "the next proposal was a copy", cycle: "the next proposal repeated an earlier one",
  empty: "the next proposal was empty", truncated: "the next proposal was cut", max_iters: "the maximum number of iterations",
  timeout: "the time limit", too_long: "the draft leaves no room for an improvement", best_of_n: "the best of several drafts",
  non_finite_gap: "the gap model failed",
};
let running = null;  // the AbortController of the request in progress
let choice = null;   // the pair that can be kept
let shown = null;    // what the result shows, for the explanation of its changes

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function headers() {
  const key = get("key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: "Bearer " + key.value } : {}) };
}

async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return "the server answered " + response.status;
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function model() {
  return get("model") ? get("model").value : "pit/improve";
}

async function improve() {
  const prompt = get("prompt").value, asked = model();
  const messages = [{ role: "user", content: prompt }];
  if (asked === "pit/improve") messages.push({ role: "assistant", content: get("draft").value });
  running = new AbortController();
  choice = null;
  get("problem").textContent = "";
  get("result").hidden = true;
  get("improve").disabled = true;
  get("stop").hidden = false;
  get("status").textContent = asked === "pit/improve" ? "Improving…" : "Waiting for the draft…";
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), signal: running.signal,
      body: JSON.stringify({ model: asked, messages, stream: true, pit: { diff: true } }),
    });
    if (!response.ok) throw new Error(await failure(response));
    let text = "", pit = null;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.pit) {
        pit = event.pit;
        get("status").textContent = "Improving: " + counted(pit.iterations.length, "iteration") + " so far…";
      }
      text += event.choices[0]?.delta.content ?? "";
    }
    if (!pit || !pit.stop_reason) throw new Error("the connection ended before the result");
    show(prompt, asked, pit, text);
  } catch (problem) {
    get("status").textContent = problem.name === "AbortError" ? "Stopped." : "";
    if (problem.name !== "AbortError") get("problem").textContent = "Error: " + problem.message;
  } finally {
    running = null;
    get("improve").disabled = false;
    get("stop").hidden = true;
  }
}

function counted(count, thing) {
  return count + " " + thing + (count === 1 ? "" : "s");
}

function show(prompt, asked, pit, text) {
  const done = pit.drafts ? counted(pit.drafts.length, "draft") : counted(pit.iterations.length, "iteration");
  const what = pit.changed ? "Improved" : "The draft was kept";
  get("summary").textContent = `${what}, after ${done}. Stopped by: ${REASONS[pit.stop_reason] ?? pit.stop_reason}.`;
  sides(pit.diff);
  drawChart(pit.drafts ?? pit.iterations);
  listSteps(pit.drafts ?? pit.iterations, Boolean(pit.drafts));
  const pair = { prompt, draft: pit.draft, improvement: text, model: asked };
  shown = pair;
  get("explain").hidden = !pit.changed;
  get("explain").disabled = false;
  get("explained").textContent = "";
  if (get("choice")) get("choice").hidden = !pit.changed;
  choice = pit.changed ? pair : null;
  keepButtons(false);
  get("result").hidden = false;
  get("status").textContent = "Done.";
  get("result").focus();
}

function sides(parts) {
  const before = get("before"), after = get("after");
  before.replaceChildren();
  after.replaceChildren();
  for (const [kind, text] of parts) {
    if (kind !== "+") before.append(kind === "-" ? element("del", text) : text);
    if (kind !== "-") after.append(kind === "+" ? element("ins", text) : text);
  }
}

async function explain() {
  const { prompt, draft, improvement } = shown, asked = shown;
  get("explain").disabled = true;
  get("problem").textContent = "";
  get("status").textContent = "Explaining…";
  try {
    const body = JSON.stringify({ prompt, draft, response: improvement });
    const response = await fetch("/explain", { method: "POST", headers: headers(), body });
    if (!response.ok) throw new Error(await failure(response));
    const { gap, edits } = await response.json();
    if (shown !== asked) return;  // another result is shown by now
    showEdits(improvement, edits);
    get("explained").textContent = `Share of the gap (${gap.toFixed(2)}) that goes if an edit alone is reverted: ` +
      "the greener the more. Red: the gap model prefers the text without it.";
    get("status").textContent = "Explained.";
  } catch (problem) {
    get("explain").disabled = false;
    get("status").textContent = "";
    get("problem").textContent = "Error: " + problem.message;
  }
}

function showEdits(improvement, edits) {
  const before = get("before"), after = get("after"), points = Array.from(improvement);  // edits count characters, not UTF-16
  before.replaceChildren();
  after.replaceChildren();
  let end = 0;
  for (const edit of edits) {
    const kept = points.slice(end, edit.at[0]).join("");
    before.append(kept, ...marked("del", edit, edit.from, !edit.to));
    after.append(kept, ...marked("ins", edit, edit.to, true));
    end = edit.at[1];
  }
  before.append(points.slice(end).join(""));
  after.append(points.slice(end).join(""));
}

function marked(tag, edit, text, hasLabel) {
  if (!text) return [];
  const mark = element(tag, text, edit.gap !== null && edit.gap <= 0 ? "edit lowers" : "edit");
  mark.style.setProperty("--share", Math.min(1, Math.max(0, edit.share ?? 0)));
  const percent = (share) => Math.round(100 * share) + "%";
  const gap = edit.gap === null ? "no gap" : "gap " + (edit.gap < 0 ? "" : "+") + edit.gap.toFixed(2);
  mark.title = gap + (edit.share === null ? "" : ", share " + percent(edit.share)) +
    (edit.low === undefined ? "" : `, ${percent(edit.low)} to ${percent(edit.high)} by one gap model`);
  return hasLabel ? [mark, element("small", edit.share === null ? gap : percent(edit.share), "share")] : [mark];
}

function drawChart(steps) {
  const chart = get("chart"), left = 30, right = 310, top = 14, bottom = 128;
  const x = (index) => steps.length < 2 ? (left + right) / 2 : left + 20 + (right - left - 40) * index / (steps.length - 1);
  const y = (p) => bottom - (bottom - top) * p;
  const add = (name, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    chart.append(made);
  };
  chart.replaceChildren();
  for (const p of [0, 0.5, 1]) {
    add("line", { x1: left, x2: right, y1: y(p), y2: y(p), class: "axis" });
    add("text", { x: left - 6, y: y(p) + 3, "text-anchor": "end" }, p.toFixed(1));
  }
  const known = steps.map((step, index) => [x(index), step.p_better, step, index]).filter(([, p]) => p !== null);
  add("polyline", { points: known.map(([at, p]) => at + "," + y(p)).join(" "), class: "line" });
  for (const [at, p, step, index] of known) {
    add("circle", { cx: at, cy: y(p), r: 4.5, class: step.accepted === false ? "rejected" : "accepted" });
    add("text", { x: at, y: p > 0.85 ? y(p) + 16 : y(p) - 8, "text-anchor": "middle" }, p.toFixed(2));
    add("text", { x: at, y: bottom + 14, "text-anchor": "middle" }, index + 1);
  }
  const said = known.map(([, p, step, index]) => `${index + 1}: ${p.toFixed(2)}${step.accepted === false ? ", rejected" : ""}`);
  chart.setAttribute("aria-label", "P(better): " + (said.join("; ") || "none"));
}

function listSteps(steps, areDrafts) {
  get("steps").replaceChildren(...steps.map((step) => {
    const item = element("li");
    const fate = areDrafts ? "draft" : step.accepted ? "accepted" : "rejected";
    item.append(element("span", `P(better) ${step.p_better === null ? "unknown" : step.p_better.toFixed(2)}, ${fate}`, "mark"));
    item.append(element("div", step.response || "(empty)", "text"));
    return item;
  }));
}

function keepButtons(disabled) {
  for (const id of ["keep-draft", "keep-improvement"]) if (get(id)) get(id).disabled = disabled;
}

async function keep(kept) {
  if (!choice || !get("choice")) return;
  const { prompt, draft, improvement, model } = choice, saved = choice;
  const [chosen, rejected] = kept === "draft" ? [draft, improvement] : [improvement, draft];
  choice = null;
  keepButtons(true);
  get("problem").textContent = "";
  try {
    const body = JSON.stringify({ prompt, chosen, rejected, kept, model });
    const response = await fetch("/pairs", { method: "POST", headers: headers(), body });
    if (!response.ok) throw new Error(await failure(response));
    get("status").textContent = `Saved: you kept the ${kept}.`;
    get("prompt").focus();
    get("prompt").select();
  } catch (problem) {
    choice = saved;
    keepButtons(false);
    get("problem").textContent = "Error: " + problem.message;
  }
}

async function listModels() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) return;
  const names = (await response.json()).data.map((entry) => entry.id);
  const chosen = get("model").value;
  get("model").replaceChildren(new Option("I paste it", "pit/improve"));
  for (const name of names.filter((name) => !["pit/improve", "pit/gap"].includes(name))) {
    get("model").add(new Option(name.replace("pit/", ""), name));
  }
  if (names.includes(chosen)) get("model").value = chosen;
}

function showDraftField() {
  const pasted = model() === "pit/improve";
  get("draft-field").hidden = !pasted;
  get("draft").required = pasted;
}

get("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) improve();
});
get("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) get("form").requestSubmit();
});
get("stop").addEventListener("click", () => running?.abort());
// only while the focus is in the result: a single key must not surprise anybody who dictates or types elsewhere
get("result").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "1") keep("draft");
  if (event.key === "2") keep("improvement");
});
get("explain").addEventListener("click", explain);
get("keep-draft")?.addEventListener("click", () => keep("draft"));
get("keep-improvement")?.addEventListener("click", () => keep("improvement"));
if (get("model")) {
  get("model").addEventListener("change", showDraftField);
  get("key")?.addEventListener("change", listModels);
  listModels().catch(() => {});
}
