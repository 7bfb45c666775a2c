// The last minutes of this server by mode, drawn from its own /metrics.

import { format } from "./answer.js";

const EVERY_MS = 5000;
const POINTS = 60;
const MODES = ["direct", "latent", "latent+explicit", "explicit", "auto"];
const SVG = "http://www.w3.org/2000/svg";

const CHARTS = [
  { title: "Requests a second", value: rate, show: (v) => v.toFixed(1) },
  { title: "Seconds a request, median", value: median, show: (v) => format(1000 * v) },
  {
    title: "Modes that answered auto",
    value: shareOfAuto,
    show: (v) => `${Math.round(100 * v)} %`,
    most: 1,
  },
];

export function startCharts(container, legend, template, onHealth) {
  const charts = CHARTS.map((chart) => {
    const figure = template.content.cloneNode(true).firstElementChild;
    figure.querySelector(".title").textContent = chart.title;
    figure.querySelector("svg").setAttribute("aria-label", `${chart.title}: nothing yet`);
    container.append(figure);
    return { ...chart, figure, points: [] };
  });
  legend.append(...MODES.map(legendEntry));
  const samples = [];
  const poll = async () => {
    if (document.hidden) return;
    try {
      samples.push(parse(await (await fetch("metrics")).text()));
      onHealth((await fetch("ready")).ok ? "ready" : "not ready");
    } catch {
      onHealth("down");
      return;
    }
    if (samples.length > 3) samples.shift(); // rates over the last ten seconds
    if (samples.length > 1) for (const chart of charts) update(chart, samples[0], samples.at(-1));
  };
  poll();
  setInterval(poll, EVERY_MS);
}

function legendEntry(mode) {
  const entry = document.createElement("li");
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 28 10");
  svg.append(line(mode, "0,5 28,5"));
  entry.append(svg, mode);
  return entry;
}

function line(mode, points) {
  const polyline = document.createElementNS(SVG, "polyline");
  polyline.setAttribute("class", mode.replace("+", "-"));
  polyline.setAttribute("points", points);
  return polyline;
}

function update(chart, then, now) {
  chart.points.push(Object.fromEntries(MODES.map((mode) => [mode, chart.value(then, now, mode)])));
  if (chart.points.length > POINTS) chart.points.shift();
  const values = chart.points.flatMap((point) => Object.values(point)).filter((value) => value !== null);
  const most = chart.most ?? Math.max(...values, 1e-9);
  const svg = chart.figure.querySelector("svg");
  const right = POINTS - chart.points.length; // time runs to the right edge
  svg.replaceChildren(
    ...MODES.flatMap((mode) =>
      runs(chart.points.map((point) => point[mode])).map((run) =>
        line(mode, run.map(([i, v]) => `${(300 * (i + right)) / (POINTS - 1)},${78 - (74 * v) / most}`).join(" ")),
      ),
    ),
  );
  const latest = MODES.filter((mode) => chart.points.at(-1)[mode] !== null);
  const text = latest.map((mode) => `${mode} ${chart.show(chart.points.at(-1)[mode])}`).join(", ");
  chart.figure.querySelector(".values").textContent = text || "no requests in the last ten seconds";
  chart.figure.querySelector(".top").textContent = values.length ? `up to ${chart.show(most)}` : "";
  svg.setAttribute("aria-label", `${chart.title}, now: ${text || "nothing yet"}`);
}

// Stretches of a line without gaps, as [index, value]; a lone point becomes a short stroke.
function runs(values) {
  const found = [];
  values.forEach((value, i) => {
    if (value === null) return;
    if (i && values[i - 1] !== null) found.at(-1).push([i, value]);
    else found.push([[i, value]]);
  });
  return found.map((run) => (run.length > 1 ? run : [[run[0][0] - 0.4, run[0][1]], run[0]]));
}

// Prometheus' text format: [{name, labels, value}] of our series.
function parse(text) {
  const rows = [];
  for (const match of text.matchAll(/^(latentserve_\w+)\{(.*)\} (\S+)$/gm)) {
    const labels = Object.fromEntries([...match[2].matchAll(/(\w+)="([^"]*)"/g)].map(([, name, value]) => [name, value]));
    rows.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return { rows, at: performance.now() };
}

function sum(sample, name, wanted) {
  return sample.rows
    .filter((row) => row.name === name && Object.entries(wanted).every(([label, value]) => row.labels[label] === value))
    .reduce((total, row) => total + row.value, 0);
}

function grown(then, now, name, wanted) {
  return sum(now, name, wanted) - sum(then, name, wanted);
}

function rate(then, now, mode) {
  const requests = grown(then, now, "latentserve_requests_total", { requested: mode });
  return (1000 * requests) / (now.at - then.at);
}

function shareOfAuto(then, now, mode) {
  const all = grown(then, now, "latentserve_requests_total", { requested: "auto" });
  if (mode === "auto" || all <= 0) return null;
  return grown(then, now, "latentserve_requests_total", { requested: "auto", mode }) / all;
}

function median(then, now, mode) {
  const name = "latentserve_request_seconds_bucket";
  const bounds = new Set(now.rows.filter((row) => row.name === name).map((row) => row.labels.le));
  const buckets = [...bounds]
    .map((le) => [le === "+Inf" ? Infinity : Number(le), grown(then, now, name, { requested: mode, le })])
    .sort((a, b) => a[0] - b[0]);
  const half = (buckets.at(-1)?.[1] ?? 0) / 2;
  if (half <= 0) return null;
  const at = buckets.findIndex(([, count]) => count >= half);
  const [below, before] = at ? buckets[at - 1] : [0, 0];
  const [bound, count] = buckets[at];
  return bound === Infinity ? below : below + ((bound - below) * (half - before)) / (count - before);
}
