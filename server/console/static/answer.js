// One mode's answer to the question, as it comes: text, time line, figures, and for auto the reasons.

import { chunks } from "./stream.js";

const SEGMENTS = ["waiting", "prefill", "network", "probe", "discarded", "first", "writing"];
const NAMES = {
  waiting: "waiting", prefill: "prefill", network: "network", probe: "probe", discarded: "doubtful answer", first: "to first token",
  writing: "writing",
};
const COLORS = {
  waiting: "var(--waiting)", prefill: "var(--prefill)", network: "var(--network)", probe: "var(--probe)", discarded: "var(--waiting)",
  first: "color-mix(in srgb, var(--color) 45%, var(--page))", writing: "var(--color)",
};
const CLASSES = ["normal", "hard", "easy"]; // where the probe has DiffAdapt's labels

export class Answer {
  constructor(mode, template) {
    this.mode = mode;
    this.element = template.content.cloneNode(true).firstElementChild;
    this.element.dataset.mode = mode;
    this.element.style.setProperty("--color", `var(--${mode.replace("+", "-")})`);
    this.element.setAttribute("aria-label", `Answer of mode ${mode}`);
    this.part(".mode").textContent = mode;
    this.started = this.first = this.ended = null;
    this.route = this.usage = null;
    this.thinking = this.text = "";
    for (const name of SEGMENTS) {
      const segment = document.createElement("span");
      segment.className = name;
      this.part(".timeline").append(segment);
    }
  }

  part(selector) {
    return this.element.querySelector(selector);
  }

  // Ask, and keep what comes; `changed` is called some ten times a second, for every token would be dear. Never rejects.
  async ask(body, key, signal, changed) {
    this.started = performance.now();
    this.element.setAttribute("aria-busy", "true");
    this.part(".outcome").textContent = "asking …";
    const ticking = setInterval(changed, 100);
    try {
      for await (const chunk of chunks({ ...body, mode: this.mode }, key, signal)) this.take(chunk);
      this.finish("done");
    } catch (error) {
      if (error.name === "AbortError") {
        this.finish("stopped");
      } else {
        this.finish("failed");
        this.part(".error").textContent = error.message;
        this.part(".error").hidden = false;
      }
    } finally {
      clearInterval(ticking);
      changed();
    }
  }

  take(chunk) {
    this.route = chunk.route ?? this.route;
    this.usage = chunk.usage ?? this.usage;
    const delta = chunk.choices[0]?.delta ?? {};
    const thinking = delta.reasoning ?? "";
    if (!thinking && !delta.content) return;
    this.first ??= performance.now();
    this.thinking += thinking;
    this.text += delta.content ?? "";
  }

  write() {
    const thinking = this.part(".thinking p");
    const text = this.thinking.trimStart();
    if (thinking.textContent !== text) {
      this.part(".thinking").hidden = false;
      thinking.textContent = text;
      thinking.scrollTop = thinking.scrollHeight;
    }
    this.part(".text").textContent = this.text.trimStart();
    if (this.ended === null && this.first !== null) this.part(".outcome").textContent = this.text ? "answering …" : "thinking …";
  }

  finish(outcome) {
    this.ended = performance.now();
    this.element.setAttribute("aria-busy", "false");
    this.part(".outcome").textContent = outcome;
    if (!this.route) return;
    const { latent_tokens: latents, discarded_tokens: discarded } = this.route;
    const parts = [];
    if (this.usage) parts.push(`${this.usage.completion_tokens} tokens generated`);
    const thinking = this.usage?.completion_tokens_details?.reasoning_tokens;
    if (thinking) parts.push(`${thinking} of them thinking`);
    if (latents) parts.push(`${latents} latents`);
    if (discarded) parts.push(`${discarded} discarded`);
    this.part(".figures").textContent = parts.join(", ");
    if (this.route.trace?.length) this.tell();
    if (this.mode === "auto") this.explain();
  }

  // The likeliest whole number of each latent, the deeper in colour the surer; and the steps of arithmetic among them.
  tell() {
    this.part(".said").hidden = false;
    for (const { latent, value, operation, probability } of this.route.trace) {
      const text = operation ? `${operation} = ${value}` : value;
      const title = `latent ${latent}: ${value}, ${Math.round(100 * probability)} %`;
      const item = Object.assign(document.createElement("li"), { textContent: text, title });
      item.style.setProperty("--share", `${40 * probability}%`);
      if (operation) item.className = "step";
      this.part(".said ol").append(item);
    }
    const share = this.route.decodability;
    const holds = share ? `The answer stands in a latent, with ${Math.round(100 * share)} %.` : "No latent says the answer.";
    this.part(".said .note").textContent = share === null ? "" : holds;
  }

  explain() {
    const { mode, scores, reason, threshold, policy, escalated, score } = this.route;
    const why = this.part(".why");
    why.hidden = false;
    const line = (text) => why.append(Object.assign(document.createElement("p"), { textContent: text }));
    line(`Answered ${mode}: ${reason.replaceAll("_", " ")}${escalated ? ", after a doubtful cheap answer" : ""} (${policy}).`);
    if (score !== null) line(`Score ${score.toFixed(2)}${threshold === null ? "" : `, wanted ${threshold.toFixed(2)}`}.`);
    if ("explicit" in scores) line("P(correct) before answering:");
    for (const [name, value] of Object.entries(scores)) {
      if (name === "tokens") {
        line(`A written chain was expected to take ${Math.round(value)} tokens.`);
      } else if (name === "probes") {
        for (const [probe, said] of Object.entries(value)) line(`Probe ${probe}: ${said === null ? "no number" : said.toFixed(2)}.`);
      } else if (value !== null && name !== "entropy" && !CLASSES.includes(name)) {
        const label = document.createElement("label");
        const meter = Object.assign(document.createElement("meter"), { value, title: `P(correct) ${name}` });
        label.append(name, meter, `${Math.round(100 * value)} %`);
        why.append(label);
      }
    }
    const classes = CLASSES.filter((name) => name in scores).map((name) => `${name} ${Math.round(100 * scores[name])} %`);
    if (classes.length) line(`DiffAdapt's classes: ${classes.join(", ")}.`);
  }

  get milliseconds() {
    return this.started === null ? 0 : (this.ended ?? performance.now()) - this.started;
  }

  // Milliseconds by segment; they add up to the whole.
  get segments() {
    const total = this.milliseconds;
    if (this.first === null) return { waiting: total, prefill: 0, network: 0, probe: 0, discarded: 0, first: 0, writing: 0 };
    const first = this.first - this.started;
    const stages = this.route?.stages ?? { gateway: 0, queue: 0, read: 0, network: 0, probe: 0, discarded: 0 };
    const known = {
      waiting: 1000 * (stages.gateway + stages.queue),
      prefill: 1000 * (stages.read - stages.network - stages.probe),
      network: 1000 * stages.network,
      probe: 1000 * stages.probe,
      discarded: 1000 * stages.discarded,
    };
    const before = Object.values(known).reduce((sum, value) => sum + value, 0);
    return { ...known, first: Math.max(0, first - before), writing: Math.max(0, total - first) };
  }

  draw(longest) {
    this.write();
    const segments = this.segments;
    for (const name of SEGMENTS) {
      this.part(`.timeline .${name}`).style.width = `${(100 * segments[name]) / longest}%`;
    }
    if (this.ended === null) {
      this.part(".times").textContent = format(this.milliseconds);
      return;
    }
    const shown = SEGMENTS.filter((name) => segments[name] >= 0.5);
    this.part(".times").replaceChildren(
      ...shown.map((name) => {
        const entry = document.createElement("span");
        const swatch = document.createElement("i");
        swatch.style.background = COLORS[name];
        entry.append(swatch, `${NAMES[name]} ${format(segments[name])}`);
        return entry;
      }),
      `done ${format(this.milliseconds)}`,
    );
    this.part(".timeline").setAttribute("aria-label", this.part(".times").textContent);
  }

  get summary() {
    const text = this.part(".text").textContent || this.part(".error").textContent;
    return `${this.mode} ${this.part(".outcome").textContent} after ${format(this.milliseconds)}: ${text}`;
  }
}

export function format(milliseconds) {
  if (milliseconds >= 10_000) return `${(milliseconds / 1000).toFixed(1)} s`;
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${Math.round(milliseconds)} ms`;
}
