// The page: a WebSocket of rows, instructions and views in, commands out. All text goes in as text, never as markup.

import { Arm } from "./arm.js";
import { plot, roundUp } from "./plots.js";

const SECONDS = 30, KEEP_MS = 60_000, SILENT_MS = 1000, RETRY_MS = 700;
const DEAF_MS = 2000; // the page says something every half second: past this nothing that is sent arrives either
const CONFIRMED_MS = 2000; // the controller answers within a tick, and the page says after 1.5 s that nobody did
const by = (id) => document.getElementById(id);
const made = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};
const number = (value, digits) => {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
};

let socket = null, ref = 0, rows = [], robot = null, ladder = [400, 600, 10000], clock = null, openedAt = 0;
const unanswered = new Map(); // ref -> what to say when nobody answers, and the timer that says it
const arm = new Arm(document.querySelector("#arm canvas"));
const tiles = new Map(), axes = [];

// -- commands ---------------------------------------------------------------------------------------------------------

function give(verb, text = "") {
  if (!socket || socket.readyState !== WebSocket.OPEN) {
    answer({ verb, outcome: "failed", message: `${verb.toUpperCase()} WAS NOT SENT: the page is not connected` });
    return;
  }
  // With the time, so that a page that hung does not carry out in a minute what was pressed now.
  socket.send(JSON.stringify({ ref: ++ref, verb, text, at_ms: now() }));
  const message = `${verb.toUpperCase()} WAS NOT CONFIRMED: look at the robot; use the terminal or the hardware’s stop`;
  const failed = { ref, verb, outcome: "failed", message };
  unanswered.set(ref, { failed, timer: setTimeout(answer, CONFIRMED_MS, failed) });
}

function answer(reply) {
  clearTimeout(unanswered.get(reply.ref)?.timer);
  unanswered.delete(reply.ref);
  const line = by("reply");
  line.textContent = reply.message;
  line.className = reply.outcome;
}

by("stop").addEventListener("click", () => give("stop"));
by("resume").addEventListener("click", () => give("resume"));
by("say").addEventListener("submit", (event) => {
  event.preventDefault();
  give("say", by("text").value);
  by("text").select();
});
// Escape stops from anywhere, also while somebody types; capturing, so that nothing on the page can swallow it.
window.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.repeat) return;
  event.preventDefault();
  give("stop");
}, true);

// -- what comes in ----------------------------------------------------------------------------------------------------

function connect() {
  const opened = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket = opened;
  opened.binaryType = "arraybuffer";
  openedAt = performance.now();
  opened.onopen = () => { rows = []; };
  opened.onmessage = ({ data }) => {
    if (socket === opened) typeof data === "string" ? take(JSON.parse(data)) : show(data);
  };
  opened.onclose = () => { if (socket === opened) leave(); };
}

/** Give the connection up, and try another. What failed stays on the screen: answers to it come no more. */
function leave() {
  const left = socket;
  socket = null;
  clock = null;
  if (by("reply").className !== "failed") by("reply").textContent = "";
  for (const { failed } of [...unanswered.values()]) answer(failed);
  left.close();
  setTimeout(connect, RETRY_MS);
}

function take(message) {
  if (message.about) {
    ladder = message.about.ladder_ms;
    arm.shape = message.about.links;
    by("arm").hidden = !message.about.links.length;
    document.querySelector("main").classList.toggle("no-arm", !message.about.links.length);
  }
  if (message.reply) answer(message.reply);
  if (message.robot) meet(message.robot);
  if (message.said) tell(message.said);
  if (message.now_ms !== undefined) clock = { ms: message.now_ms, at: performance.now() };
  if (message.rows) {
    rows.push(...message.rows);
    const newest = rows[rows.length - 1].t_ms;
    rows = rows.filter((row) => newest - row.t_ms < KEEP_MS);
  }
}

/** Now on the robot's clock, ms; null while nothing is heard of the page. */
const now = () => (clock === null ? null : clock.ms + performance.now() - clock.at);

function meet(other) {
  if (JSON.stringify(other) === JSON.stringify(robot)) return;
  robot = other;
  by("robot").textContent = robot.name;
  by("axes").replaceChildren();
  axes.length = 0;
  robot.action_names.forEach((name, index) => {
    const box = made("div", undefined, "axis"), head = made("p"), value = made("b"), canvas = made("canvas");
    head.append(made("span", name.replaceAll("_", " ")), value);
    box.append(head, canvas);
    by("axes").append(box);
    axes.push({ target: index, measured: robot.state_names.indexOf(name), value, canvas, span: robot.high[index] - robot.low[index] });
  });
}

function tell(said) {
  const items = said.map((one) => {
    const item = made("li", undefined, one.state), words = [];
    if (one.state !== "past") words.push(one.state);
    if (one.switch_ms !== null) words.push(`after ${number(one.switch_ms, 0)} ms`);
    if (one.task_done) words.push("done");
    item.append(made("p", one.text), made("small", words.join(" · "), "state"));
    return item;
  });
  by("history").replaceChildren(...items.reverse());
}

/** Views: the length of a JSON header, the header, and the pictures it lists. */
function show(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const { views } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  for (const view of views) {
    let tile = tiles.get(view.camera);
    if (!tile) {
      tile = { box: made("figure"), image: made("img"), age: made("span") };
      const caption = made("figcaption");
      caption.append(made("span", view.camera), tile.age);
      tile.image.alt = "";
      tile.box.append(tile.image, caption);
      by("tiles").append(tile.box);
      tiles.set(view.camera, tile);
    }
    if (view.bytes) {
      const url = URL.createObjectURL(new Blob([new Uint8Array(buffer, at, view.bytes)], { type: "image/jpeg" }));
      const before = tile.image.src;
      tile.image.src = url;
      if (before) URL.revokeObjectURL(before);
    }
    at += view.bytes;
    tile.box.classList.toggle("unseen", !view.is_encoded || !view.bytes);
    tile.age.textContent = !view.is_encoded ? "not encoded" : view.bytes ? `${number(view.age_ms, 0)} ms` : "no longer kept";
  }
  for (const [camera, tile] of tiles) {
    if (views.some((view) => view.camera === camera)) continue;
    tile.box.remove();
    tiles.delete(camera);
  }
}

// -- what is shown ----------------------------------------------------------------------------------------------------

function draw() {
  if (clock !== null && performance.now() - clock.at > DEAF_MS) leave();
  const last = rows[rows.length - 1], time = now();
  const silence = time !== null && last ? time - last.t_ms : null;
  const isSilent = time === null || !last || silence > SILENT_MS;
  const mode = isSilent ? "NONE" : last.mode;
  document.body.dataset.mode = mode;
  document.title = isSilent ? "Saccade" : `${mode} · Saccade`;
  by("mode").textContent = isSilent ? "–" : mode;
  by("reason").textContent = isSilent ? "" : [last.reason, last.limits.length ? `limited: ${last.limits.join(", ")}` : ""].filter(Boolean).join(" · ");
  by("reason").title = by("reason").textContent;
  by("resume").disabled = mode !== "STOP";
  const trouble = time === null
    ? performance.now() - openedAt < 300 && !rows.length ? "" : "Not connected: nothing on this page is current, and STOP does not reach the robot. Use the terminal or the hardware’s stop."
    : isSilent ? (last ? `The controller has been silent for ${(silence / 1000).toFixed(0)} s.` : "Waiting for the controller.") : "";
  by("trouble").hidden = !trouble;
  by("trouble").textContent = trouble;
  const recent = rows.filter((row) => last.t_ms - row.t_ms < 5000);
  const running = recent.filter((row) => row.mode === "RUN");
  const span = running.length > 1 ? running[running.length - 1].t_ms - running[0].t_ms : 0;
  by("action-hz").textContent = isSilent || !span ? "–" : `${number(((running.length - 1) * 1000) / span, 1)} Hz`;
  by("encode-hz").textContent = isSilent || last.encode_hz === null ? "–" : `${number(last.encode_hz, 1)} Hz`;
  by("missed").textContent = last ? String(rows.reduce((sum, row) => sum + row.missed_ticks, 0)) : "–";
  by("age-now").textContent = isSilent ? "–" : `${number(last.feature_age_ms, 0)} ms`;
  by("cycle-now").textContent = isSilent ? "–" : `${number(last.cycle_ms, 2)} ms`;
  const at = time ?? (last ? last.t_ms : 0), shown = rows.filter((row) => at - row.t_ms < SECONDS * 1000 + 500);
  drawAge(shown, at);
  drawCycle(shown, at);
  axes.forEach((axis) => drawAxis(axis, shown, at));
  if (last && robot) {
    const of = (names, values) => (values.length ? (name) => values[names.indexOf(name)] : null);
    arm.draw(of(robot.state_names, last.measured), of(robot.action_names, last.target));
  }
}

function drawAge(shown, at) {
  const [slow, hold, stop] = ladder;
  const most = Math.max(hold * 1.12, ...shown.map((row) => row.feature_age_ms ?? 0));
  plot(document.querySelector("#age canvas"), shown, at, {
    seconds: SECONDS, low: 0, high: most,
    bands: [{ from: slow, to: hold, colour: "--ageing" }, { from: hold, to: Math.max(most, stop), colour: "--stale" }],
    ticks: [{ value: 0 }, { value: slow, note: "slower", colour: "--hold" }, { value: hold, note: "HOLD", colour: "--stop" },
      { value: roundUp(most / 2) }].filter((tick) => tick.note || !tick.value || tick.value > hold * 1.2),
    curves: [{ of: (row) => row.feature_age_ms, colour: "--measured" }],
  });
}

function drawCycle(shown, at) {
  const high = roundUp(Math.max(0.5, ...shown.map((row) => Math.max(row.cycle_ms ?? 0, row.lateness_ms ?? 0))) * 1.05);
  plot(document.querySelector("#cycle canvas"), shown, at, {
    seconds: SECONDS, low: 0, high,
    ticks: [0, high / 2, high].map((value) => ({ value, label: String(Number(value.toPrecision(2))) })),
    curves: [
      { of: (row) => row.lateness_ms, colour: "--second" },
      { of: (row) => row.cycle_ms, colour: "--measured" },
    ],
  });
}

function drawAxis(axis, shown, at) {
  const measured = (row) => (axis.measured < 0 ? null : row.measured[axis.measured]), target = (row) => row.target[axis.target];
  const values = shown.flatMap((row) => [measured(row), target(row)]).filter((value) => value !== null && value !== undefined);
  const least = Math.max(0.02 * (axis.span || 1), 1e-6);
  let low = Math.min(...values), high = Math.max(...values);
  if (!values.length) [low, high] = [0, 1];
  const spare = Math.max(0, least - (high - low)) / 2 + 0.08 * (high - low);
  plot(axis.canvas, shown, at, {
    seconds: SECONDS, low: low - spare, high: high + spare, left: 36, times: false,
    ticks: values.length ? [low - spare / 2, high + spare / 2].map((value) => ({ value, label: number(value, 2) })) : [],
    curves: [{ of: target, colour: "--target", dashed: true, stepped: true }, { of: measured, colour: "--measured" }],
  });
  axis.value.textContent = shown.length ? number(measured(shown[shown.length - 1]), 3) : "–";
}

connect();
(function frame() {
  draw();
  setTimeout(() => requestAnimationFrame(frame), 80);
})();
