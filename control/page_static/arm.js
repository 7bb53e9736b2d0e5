// The arm in 3-D from its links and joint values: forward kinematics and a perspective drawing on a plain canvas.

import { prepared, style } from "./plots.js";

const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const add = (a, b) => a.map((value, i) => value + b[i]);
const scaled = (a, by) => a.map((value) => value * by);
const unit = (a) => scaled(a, 1 / (Math.hypot(...a) || 1));
const turned = (rows, v) => rows.map((row) => dot(row, v));

/** Rotation about a unit axis (Rodrigues), as rows. */
function rotation([x, y, z], angle) {
  const c = Math.cos(angle), s = Math.sin(angle), d = 1 - c;
  return [
    [c + x * x * d, x * y * d - z * s, x * z * d + y * s],
    [y * x * d + z * s, c + y * y * d, y * z * d - x * s],
    [z * x * d - y * s, z * y * d + x * s, c + z * z * d],
  ];
}
const product = (a, b) => a.map((row) => [0, 1, 2].map((j) => dot(row, b.map((other) => other[j]))));

/** The position of every link: [{from, to, moves}], m. `value(name)` is the state of that name. */
export function pose(links, value) {
  const frames = new Map([["", { at: [0, 0, 0], turn: [[1, 0, 0], [0, 1, 0], [0, 0, 1]] }]]);
  return links.map((link) => {
    const parent = frames.get(link.parent), axis = unit(link.axis);
    const by = link.state ? (value(link.state) ?? 0) * link.gain : 0;
    const origin = link.kind === "slide" ? add(link.origin, scaled(axis, by)) : link.origin;
    const at = add(parent.at, turned(parent.turn, origin));
    frames.set(link.name, { at, turn: link.kind === "turn" && by ? product(parent.turn, rotation(axis, by)) : parent.turn });
    return { from: parent.at, to: at, moves: Boolean(link.state) };
  });
}

export class Arm {
  constructor(canvas) {
    this.canvas = canvas;
    this.turn = -0.9;
    this.tilt = 0.42;
    this.links = [];
    let grip = null;
    canvas.addEventListener("pointerdown", (event) => { grip = event; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointerup", () => { grip = null; });
    canvas.addEventListener("pointermove", (event) => {
      if (!grip) return;
      this.turn -= (event.clientX - grip.clientX) * 0.01;
      this.tilt = Math.min(1.5, Math.max(0.05, this.tilt + (event.clientY - grip.clientY) * 0.01));
      grip = event;
    });
  }

  set shape(links) {
    this.links = links;
    // As far as the arm can reach, summed along its longest chain.
    const reach = new Map([["", 0]]);
    for (const link of links) reach.set(link.name, reach.get(link.parent) + Math.hypot(...link.origin));
    this.reach = Math.max(0.1, ...reach.values());
  }

  draw(measured, target) {
    const area = prepared(this.canvas);
    if (!area || !this.links.length) return;
    const { pen, width, height } = area;
    const back = [Math.cos(this.tilt) * Math.cos(this.turn), Math.cos(this.tilt) * Math.sin(this.turn), Math.sin(this.tilt)];
    const side = unit(cross([0, 0, 1], back)), up = cross(back, side);
    const centre = [0.22 * this.reach, 0, 0.2 * this.reach], distance = 3.2 * this.reach;
    const scale = (Math.min(width * 0.75, height) * 3.4) / this.reach;
    const seen = (point) => {
      const p = add(point, scaled(centre, -1)), depth = (distance - dot(p, back)) / this.reach;
      return [width / 2 + (dot(p, side) * scale) / depth, height / 2 - (dot(p, up) * scale) / depth];
    };
    const line = (from, to, colour, thickness) => {
      pen.strokeStyle = colour;
      pen.lineWidth = thickness;
      pen.beginPath();
      pen.moveTo(...seen(from));
      pen.lineTo(...seen(to));
      pen.stroke();
    };
    const cell = this.reach / 8;
    for (let i = -2; i <= 6; i++) line([i * cell, -4 * cell, 0], [i * cell, 4 * cell, 0], style("--edge"), 1);
    for (let i = -4; i <= 4; i++) line([-2 * cell, i * cell, 0], [6 * cell, i * cell, 0], style("--edge"), 1);
    pen.lineCap = "round";
    const thickness = Math.max(3, height / 42);
    if (target) {
      pen.setLineDash([4, 5]);
      for (const part of pose(this.links, target)) line(part.from, part.to, style("--target"), 1.6);
      pen.setLineDash([]);
    }
    if (!measured) return;
    const parts = pose(this.links, measured);
    for (const part of parts) {  // its shadow on the ground tells the height
      line([part.from[0], part.from[1], 0], [part.to[0], part.to[1], 0], style("--edge"), thickness);
    }
    for (const part of parts) line(part.from, part.to, style("--measured"), thickness);
    for (const part of parts.filter((one) => one.moves)) {
      pen.fillStyle = style("--panel");
      pen.strokeStyle = style("--measured");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(...seen(part.to), thickness * 0.62, 0, 7);
      pen.fill();
      pen.stroke();
    }
  }
}
