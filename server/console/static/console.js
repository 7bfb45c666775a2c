// The page: a question, asked in several modes side by side.

import { Answer } from "./answer.js";
import { startCharts } from "./charts.js";
import { request } from "./stream.js";

const byId = (id) => document.getElementById(id);
const key = byId("key");
let asking = null; // the AbortController of the running question
let model = null;
let explain = false; // whether the server can say what latents say

key.value = sessionStorage.getItem("key") ?? "";
key.addEventListener("change", () => {
  sessionStorage.setItem("key", key.value);
  findModel();
});

async function setUp() {
  const { modes, examples, explains } = await (await fetch("console/setup")).json();
  explain = explains;
  for (const mode of modes) {
    const label = document.createElement("label");
    label.append(Object.assign(document.createElement("input"), { type: "checkbox", name: "mode", value: mode, checked: true }));
    label.append(` ${mode}`);
    byId("modes").append(label);
  }
  for (const { label, question } of examples) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: label, title: question });
    button.addEventListener("click", () => {
      byId("question").value = question;
      byId("form").requestSubmit();
    });
    byId("examples").append(button);
  }
  startCharts(byId("charts"), byId("legend"), byId("chart-template"), (state) => {
    byId("health").textContent = state === "down" ? "the server does not answer" : state;
    byId("health").dataset.state = state;
  });
  await findModel();
}

async function findModel() {
  try {
    const { data } = await (await request("v1/models", key.value)).json();
    model = data[0].id;
    byId("model").textContent = model;
    byId("notice").textContent = "";
  } catch (error) {
    model = null;
    if (error.status === 401) byId("key-field").hidden = false;
    byId("notice").textContent = error.status === 401 ? "This server wants an API key." : error.message;
  }
}

async function ask() {
  stop();
  if (model === null) await findModel();
  const modes = [...document.querySelectorAll("input[name=mode]:checked")].map((box) => box.value);
  byId("notice").textContent = modes.length ? byId("notice").textContent : "Choose a mode.";
  if (model === null || !modes.length) return;
  const controller = (asking = new AbortController());
  byId("stop").disabled = false;
  const answers = modes.map((mode) => new Answer(mode, byId("answer-template")));
  byId("answers").replaceChildren(...answers.map((answer) => answer.element));
  const draw = () => {
    const longest = Math.max(1, ...answers.map((answer) => answer.milliseconds));
    for (const answer of answers) answer.draw(longest);
  };
  const body = {
    model,
    messages: [{ role: "user", content: byId("question").value }],
    temperature: Number(byId("temperature").value),
    stream: true,
    stream_options: { include_usage: true },
    explain,
    ...(byId("max-tokens").value ? { max_tokens: Number(byId("max-tokens").value) } : {}),
  };
  const run = async (answer) => {
    await answer.ask(body, key.value, controller.signal, draw);
    byId("announcements").textContent = answer.summary;
  };
  if (byId("order").value === "in-turn") for (const answer of answers) await run(answer);
  else await Promise.all(answers.map(run));
  if (asking === controller) {
    asking = null;
    byId("stop").disabled = true;
  }
}

function stop() {
  asking?.abort();
  asking = null;
  byId("stop").disabled = true;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
setUp();
