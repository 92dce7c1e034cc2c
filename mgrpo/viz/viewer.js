"use strict";
(() => {
  const root = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (name) => root.querySelector(`[data-part="${name}"]`);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const FOCAL = 2.4; // panel heights, as in the films
  const BODY = 22; // joints without fingers
  const JOINTS = data.parents.length; // the most that a motion has
  const wrist = (j) => (j < BODY ? j : BODY - 2 + Math.floor((j - BODY) / 15));
  const HOME = { turn: 0, elevation: 0.24, zoom: 1, pan: [0, 0, 0] };
  const LIGHT = [-0.42, 0.62, 0.66].map((v) => v / Math.hypot(0.42, 0.62, 0.66)); // right, up, back
  const SHADOW = [0.35, -0.2]; // metres along the floor per metre of height
  const FRUSTUM = [0.075, 0.055, 0.14];

  // ---- data ------------------------------------------------------------------------------------------------------------------------

  function bytes(base64) {
    const text = atob(base64);
    const out = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) out[i] = text.charCodeAt(i);
    return out;
  }
  const floats = (base64) => new Float32Array(bytes(base64).buffer);
  const shorts = (base64) => new Int16Array(bytes(base64).buffer);

  const T = data.frames;
  const centers = floats(data.view.centers);
  const heads = data.heads.map(floats);
  const actors = data.actors.map((actor) => ({
    ...actor,
    root: floats(actor.root),
    joints: shorts(actor.joints),
    centers: floats(actor.centers),
    quats: actor.quats ? shorts(actor.quats) : null,
    contacts: actor.contacts ? bytes(actor.contacts) : null,
    error: actor.error ? floats(actor.error) : null,
    solid: 0, // which of its samples
    hidden: false,
  }));
  const truth = actors.find((actor) => actor.truth) || null;

  const color = (text) => [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16) / 255);
  const mix = (a, b, share) => a.map((value, i) => value + (b[i] - value) * share);
  const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
  const variable = (name) => color(getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());

  // joints (each x 3) of a sample at a time in frames, and its orientations (those of two frames have signs that agree);
  // null where it isn't there
  function pose(actor, sample, time) {
    const low = Math.floor(time), high = Math.min(low + 1, T - 1), share = time - low;
    const at = (frame) => (sample * T + frame), count = actor.count;
    if (Number.isNaN(actor.root[3 * at(low)])) return null;
    const next = share > 0 && !Number.isNaN(actor.root[3 * at(high)]) ? high : low;
    const points = new Float32Array(3 * count);
    const one = (frame, joint, axis) =>
      actor.root[3 * at(frame) + axis] + (joint ? actor.joints[(at(frame) * (count - 1) + joint - 1) * 3 + axis] * data.step : 0);
    for (let j = 0; j < count; j += 1) {
      for (let k = 0; k < 3; k += 1) {
        const a = one(low, j, k);
        points[3 * j + k] = next === low ? a : a + (one(next, j, k) - a) * share;
      }
    }
    let turns = null;
    if (actor.quats) {
      turns = new Float32Array(4 * count);
      for (let j = 0; j < count; j += 1) {
        const a = (at(low) * count + j) * 4, b = (at(next) * count + j) * 4;
        let norm = 0;
        for (let k = 0; k < 4; k += 1) {
          const value = actor.quats[a + k] + (next === low ? 0 : share * (actor.quats[b + k] - actor.quats[a + k]));
          turns[4 * j + k] = value;
          norm += value * value;
        }
        norm = Math.sqrt(norm) || 1;
        for (let k = 0; k < 4; k += 1) turns[4 * j + k] /= norm;
      }
    }
    const touch = new Float32Array(count);
    if (actor.contacts && state.contacts) {
      const first = at(Math.round(time)) * (BODY - 1) - 1;
      for (let j = 1; j < count; j += 1) touch[j] = actor.contacts[first + wrist(j)] / 255; // a hand as its wrist
    }
    return { points, turns, touch };
  }

  // ---- state -----------------------------------------------------------------------------------------------------------------------

  const state = {
    time: 0, playing: false, speed: 1, layout: data.layout, show: data.show, ...HOME, pan: [0, 0, 0],
    samples: true, truth: true, head: true, contacts: true, follow: true,
  };
  const frameNow = () => clamp(Math.round(state.time), 0, T - 1);

  const canvas = $("canvas");
  const gl = canvas.getContext("webgl2", { antialias: true, stencil: true, alpha: false });
  if (!gl) {
    const text = document.createElement("p");
    text.className = "failed";
    text.textContent = "This page draws with WebGL 2, which this browser doesn't offer. Turn on hardware acceleration, or write a film by --video.";
    canvas.replaceWith(text);
    return;
  }

  // ---- programs --------------------------------------------------------------------------------------------------------------------

  function program(vertex, fragment) {
    const made = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, `#version 300 es\nprecision highp float;\n${source}`);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(made, shader);
    }
    gl.linkProgram(made);
    if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
    const uniforms = {};
    for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i += 1) {
      const name = gl.getActiveUniform(made, i).name.replace("[0]", "");
      uniforms[name] = gl.getUniformLocation(made, name);
    }
    return { made, uniforms };
  }

  const skin = program(`
    layout(location=0) in vec3 rest; layout(location=1) in vec3 normal;
    layout(location=2) in uvec4 bone; layout(location=3) in vec4 weight;
    // three rows for each joint: with four, 52 joints would not fit what every device has
    uniform vec4 bones[${3 * JOINTS}]; uniform float touch[${JOINTS}]; uniform mat4 camera; uniform vec2 slant; uniform float flatten;
    out vec3 facing; out float mark; out vec3 place;
    void main() {
      vec4 x = vec4(0.0), y = vec4(0.0), z = vec4(0.0), at = vec4(rest, 1.0);
      mark = 0.0;
      for (int i = 0; i < 4; i += 1) {
        int row = 3 * int(bone[i]);
        x += bones[row] * weight[i]; y += bones[row + 1] * weight[i]; z += bones[row + 2] * weight[i];
        mark += touch[bone[i]] * weight[i];
      }
      vec3 p = vec3(dot(x, at), dot(y, at), dot(z, at));
      facing = vec3(dot(x.xyz, normal), dot(y.xyz, normal), dot(z.xyz, normal)); place = p;
      if (flatten > 0.0) p = vec3(p.xy + p.z * slant, 0.001);
      gl_Position = camera * vec4(p, 1.0);
    }`, `
    in vec3 facing; in float mark; in vec3 place;
    uniform vec3 color, markColor, light, eye; uniform float alpha, shaded; out vec4 result;
    void main() {
      vec3 base = mix(color, markColor, clamp(mark * 1.2, 0.0, 1.0) * 0.85);
      if (shaded < 0.5) { result = vec4(base, alpha); return; }
      vec3 n = normalize(facing), v = normalize(eye - place);
      if (dot(n, v) < 0.0) n = -n;
      float wrapped = 0.5 + 0.5 * dot(n, light);
      float rim = pow(clamp(1.0 - dot(n, v), 0.0, 1.0), 3.0) * 0.25;
      float shine = pow(clamp((wrapped - 0.72) / 0.28, 0.0, 1.0), 2.0) * 0.34;
      vec3 lit = base * clamp(0.5 + 0.64 * wrapped, 0.0, 1.0) * (1.0 - rim);
      result = vec4(lit + shine * (1.0 - lit), alpha);
    }`);

  // capsules between two points, drawn as quads that face the camera; radii in metres, or in pixels where negative
  const rod = program(`
    layout(location=0) in vec2 corner; layout(location=1) in vec3 start; layout(location=2) in vec3 end;
    layout(location=3) in vec2 radius; layout(location=4) in vec3 tint;
    uniform mat4 camera; uniform vec2 size; uniform float focal;
    flat out vec2 a, b, r, deep, bulge; flat out vec3 paint;
    vec2 pixels(vec4 p) { return (p.xy / p.w * 0.5 + 0.5) * size; }
    void main() {
      vec4 p = camera * vec4(start, 1.0), q = camera * vec4(end, 1.0);
      paint = tint;
      if (p.w < 0.1 || q.w < 0.1) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); a = b = r = deep = bulge = vec2(0.0); return; }
      a = pixels(p); b = pixels(q); deep = vec2(p.w, q.w); bulge = max(radius, 0.0);
      r = vec2(radius.x < 0.0 ? -radius.x : radius.x * focal / p.w, radius.y < 0.0 ? -radius.y : radius.y * focal / q.w);
      vec2 along = length(b - a) > 1e-4 ? normalize(b - a) : vec2(1.0, 0.0), across = vec2(-along.y, along.x);
      float grow = max(r.x, r.y) + 1.5;
      vec2 at = mix(a, b, corner.x) + along * (corner.x * 2.0 - 1.0) * grow + across * corner.y * grow;
      gl_Position = vec4(at / size * 2.0 - 1.0, 0.0, 1.0);
    }`, `
    flat in vec2 a, b, r, deep, bulge; flat in vec3 paint; uniform vec2 corner0, lens; uniform float shaded; out vec4 result;
    void main() {
      vec2 p = gl_FragCoord.xy - corner0, ab = b - a;
      float t = dot(ab, ab) > 1e-6 ? clamp(dot(p - a, ab) / dot(ab, ab), 0.0, 1.0) : 0.0;
      vec2 off = p - a - ab * t;
      float radius = mix(r.x, r.y, t), far = length(off) / radius;
      float edge = clamp((radius - length(off)) + 0.5, 0.0, 1.0);
      if (edge <= 0.0) discard;
      vec3 color = paint;
      if (shaded > 0.5) {
        vec3 n = vec3(off / radius, sqrt(max(0.0, 1.0 - far * far)));
        float wrapped = 0.5 + 0.5 * dot(n, vec3(${LIGHT.map((v) => v.toFixed(4)).join(",")}));
        color *= clamp(0.5 + 0.64 * wrapped, 0.0, 1.0);
        color += pow(clamp((wrapped - 0.72) / 0.28, 0.0, 1.0), 2.0) * 0.34 * (1.0 - color);
      }
      result = vec4(color, edge);
      // the surface of the capsule, so that rods that meet hide one another as round things do
      float depth = mix(deep.x, deep.y, t) - mix(bulge.x, bulge.y, t) * sqrt(max(0.0, 1.0 - far * far));
      gl_FragDepth = clamp(0.5 * (lens.y / depth - lens.x) + 0.5, 0.0, 1.0);
    }`);

  const floor = program(`
    layout(location=0) in vec2 corner; uniform mat4 camera; uniform vec2 center; uniform float reach; out vec2 place;
    void main() { place = center + corner * reach; gl_Position = camera * vec4(place, 0.0, 1.0); }`, `
    in vec2 place; uniform vec2 center; uniform float reach; uniform vec3 color; out vec4 result;
    void main() {
      vec2 cell = place / 0.5, width = fwidth(cell) * 0.9;
      vec2 near = abs(fract(cell - 0.5) - 0.5) / max(width, 1e-5);
      float line = (1.0 - min(min(near.x, near.y), 1.0)) * clamp(1.4 - 2.0 * max(width.x, width.y), 0.0, 1.0);
      float fade = 1.0 - smoothstep(0.25, 1.0, length(place - center) / reach);
      result = vec4(color, line * fade * 0.9);
    }`);

  const disc = program(`
    layout(location=0) in vec2 corner; uniform mat4 camera; uniform vec3 center; uniform float radius; out vec2 at;
    void main() { at = corner; gl_Position = camera * vec4(center.xy + corner * radius, 0.002, 1.0); }`, `
    in vec2 at; uniform vec4 color; out vec4 result;
    void main() {
      float far = length(at), soft = fwidth(far);
      result = vec4(color.rgb, color.a * (1.0 - smoothstep(1.0 - soft, 1.0, far)));
    }`);

  // ---- buffers ---------------------------------------------------------------------------------------------------------------------

  function attribute(location, values, size, options = {}) {
    const buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(location);
    if (options.whole) gl.vertexAttribIPointer(location, size, gl.UNSIGNED_BYTE, 0, 0);
    else gl.vertexAttribPointer(location, size, options.type || gl.FLOAT, Boolean(options.normalized), 0, 0);
    return buffer;
  }

  const squares = new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]);
  const quad = gl.createVertexArray();
  gl.bindVertexArray(quad);
  attribute(0, squares, 2);

  const rods = gl.createVertexArray();
  gl.bindVertexArray(rods);
  attribute(0, new Float32Array([0, -1, 1, -1, 0, 1, 1, 1]), 2);
  const rodBuffer = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, rodBuffer);
  [[1, 3, 0], [2, 3, 12], [3, 2, 24], [4, 3, 32]].forEach(([location, size, offset]) => {
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, size, gl.FLOAT, false, 44, offset);
    gl.vertexAttribDivisor(location, 1);
  });

  const meshes = data.meshes.map((mesh) => ({ ...mesh, faces: new Uint32Array(bytes(mesh.faces).buffer) }));
  const shapes = data.shapes.map((shape) => {
    const mesh = meshes[shape.mesh], faces = mesh.faces;
    const rest = Float32Array.from(shorts(shape.rest), (value) => value * data.step);
    const normals = new Float32Array(rest.length);
    for (let f = 0; f < faces.length; f += 3) {
      const [a, b, c] = [0, 1, 2].map((i) => 3 * faces[f + i]);
      const u = [0, 1, 2].map((k) => rest[b + k] - rest[a + k]), v = [0, 1, 2].map((k) => rest[c + k] - rest[a + k]);
      const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
      for (const corner of [a, b, c]) for (let k = 0; k < 3; k += 1) normals[corner + k] += n[k];
    }
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    attribute(0, rest, 3);
    attribute(1, normals, 3);
    attribute(2, bytes(mesh.bones), 4, { whole: true });
    attribute(3, bytes(mesh.weights), 4, { type: gl.UNSIGNED_BYTE, normalized: true });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
    return { array, joints: shape.joints, corners: faces.length };
  });
  gl.bindVertexArray(null);

  // the upper three rows of each joint's matrix
  function boneRows(shape, body) {
    const out = new Float32Array(12 * shape.joints.length);
    for (let j = 0; j < shape.joints.length; j += 1) {
      const [w, x, y, z] = body.turns.subarray(4 * j, 4 * j + 4);
      const m = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
      ];
      const rest = shape.joints[j];
      for (let row = 0; row < 3; row += 1) {
        const turned = m.slice(3 * row, 3 * row + 3);
        out.set(turned, 12 * j + 4 * row);
        out[12 * j + 4 * row + 3] = body.points[3 * j + row] - (turned[0] * rest[0] + turned[1] * rest[1] + turned[2] * rest[2]);
      }
    }
    return out;
  }

  // ---- camera ----------------------------------------------------------------------------------------------------------------------

  // a view of one motion keeps to that motion's own way, one of all to the first's
  function cameraFor(width, height, way = centers) {
    const aspect = width / height, view = data.view;
    const low = Math.floor(state.time), high = Math.min(low + 1, T - 1), share = state.time - low;
    const middle = state.follow
      ? [0, 1].map((k) => way[2 * low + k] + (way[2 * high + k] - way[2 * low + k]) * share)
      : [way[0], way[1]];
    const target = [middle[0] + state.pan[0], middle[1] + state.pan[1], view.height + state.pan[2]];
    // a little air above for the names
    const distance = FOCAL * Math.max(view.across / (0.5 * aspect), view.up / 0.5) * 1.1 + 0.35 * view.across;
    const azimuth = view.azimuth + state.turn;
    const ce = Math.cos(state.elevation), se = Math.sin(state.elevation), ca = Math.cos(azimuth), sa = Math.sin(azimuth);
    const back = [ce * ca, ce * sa, se], right = [-sa, ca, 0], up = [-se * ca, -se * sa, ce];
    const focal = FOCAL * state.zoom, eye = target.map((value, k) => value + distance * back[k]);
    const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    const near = 0.1, far = distance + 120;
    const sx = (2 * focal) / aspect, sy = 2 * focal, zz = (far + near) / (near - far), zw = (2 * far * near) / (near - far);
    const matrix = new Float32Array(16);
    for (let k = 0; k < 3; k += 1) {
      matrix[4 * k] = sx * right[k];
      matrix[4 * k + 1] = sy * up[k];
      matrix[4 * k + 2] = zz * back[k];
      matrix[4 * k + 3] = -back[k];
    }
    matrix[12] = -sx * dot(right, eye);
    matrix[13] = -sy * dot(up, eye);
    matrix[14] = -zz * dot(back, eye) + zw;
    matrix[15] = dot(back, eye);
    const light = [0, 1, 2].map((k) => LIGHT[0] * right[k] + LIGHT[1] * up[k] + LIGHT[2] * back[k]);
    return { matrix, eye, light, right, up, center: middle, distance, focal: focal * height, lens: [zz, zw] };
  }

  // ---- drawing ---------------------------------------------------------------------------------------------------------------------

  let pending = false;
  let colors = null;

  function readColors() {
    const dark = isDark();
    colors = {
      dark, surface: variable("surface"), line: variable("line"), ink: variable("ink"), muted: variable("muted"),
      contact: color(data.contact[dark ? 1 : 0]), actors: actors.map((actor) => color(actor.color[dark ? 1 : 0])),
    };
    root.querySelectorAll(".caption").forEach((item, i) => item.style.setProperty("--c", actors[i].color[dark ? 1 : 0]));
    root.querySelectorAll("[data-actor]").forEach((path) => { path.style.stroke = actors[Number(path.dataset.actor)].color[dark ? 1 : 0]; });
  }

  function use(which, camera) {
    gl.useProgram(which.made);
    gl.uniformMatrix4fv(which.uniforms.camera, false, camera.matrix);
    return which.uniforms;
  }

  function drawSkin(camera, actor, sample, body, options) {
    const shape = shapes[actor.shapes[sample]];
    const uniforms = use(skin, camera);
    gl.uniform4fv(uniforms.bones, boneRows(shape, body));
    gl.uniform1fv(uniforms.touch, options.marks ? body.touch : new Float32Array(JOINTS));
    gl.uniform3fv(uniforms.color, options.color);
    gl.uniform3fv(uniforms.markColor, colors.contact);
    gl.uniform3fv(uniforms.light, camera.light);
    gl.uniform3fv(uniforms.eye, camera.eye);
    gl.uniform1f(uniforms.alpha, options.alpha);
    gl.uniform1f(uniforms.shaded, options.shaded ? 1 : 0);
    gl.uniform1f(uniforms.flatten, options.shadow ? 1 : 0);
    gl.uniform2fv(uniforms.slant, SHADOW);
    gl.bindVertexArray(shape.array);
    gl.drawElements(gl.TRIANGLES, shape.corners, gl.UNSIGNED_INT, 0);
  }

  // nothing of a translucent body shows through itself: its depth goes first
  function drawPale(camera, actor, sample, body, tint, alpha, shaded = false) {
    gl.colorMask(false, false, false, false);
    drawSkin(camera, actor, sample, body, { color: tint, alpha: 1 });
    gl.colorMask(true, true, true, true);
    gl.depthFunc(gl.LEQUAL);
    drawSkin(camera, actor, sample, body, { color: tint, alpha, shaded, marks: shaded });
    gl.depthFunc(gl.LESS);
  }

  function drawRods(camera, rect, list, shaded) {
    if (!list.length) return;
    const uniforms = use(rod, camera);
    gl.uniform2f(uniforms.size, rect[2], rect[3]);
    gl.uniform2f(uniforms.corner0, rect[0], rect[1]);
    gl.uniform1f(uniforms.focal, camera.focal);
    gl.uniform2fv(uniforms.lens, camera.lens);
    gl.uniform1f(uniforms.shaded, shaded ? 1 : 0);
    gl.bindVertexArray(rods);
    gl.bindBuffer(gl.ARRAY_BUFFER, rodBuffer);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(list.flat()), gl.DYNAMIC_DRAW);
    // soft edges as coverage, not as blending, which would leave seams where rods meet
    gl.disable(gl.BLEND);
    gl.enable(gl.SAMPLE_ALPHA_TO_COVERAGE);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, list.length);
    gl.disable(gl.SAMPLE_ALPHA_TO_COVERAGE);
    gl.enable(gl.BLEND);
  }

  function skeleton(body, tint, marks, thickness = 1) {
    const point = (j) => Array.from(body.points.subarray(3 * j, 3 * j + 3));
    const list = [];
    for (let j = 1; j < body.touch.length; j += 1) {
      const r = (j < BODY ? 0.019 : 0.007) * thickness;
      list.push([...point(data.parents[j]), ...point(j), r, r * 0.8, ...tint]);
    }
    for (let j = 0; j < BODY && thickness >= 1; j += 1) {
      const touched = marks && body.touch[j] > 0.5, r = touched ? 0.04 : 0.026;
      list.push([...point(j), ...point(j), r, r, ...(touched ? colors.contact : mix(tint, [1, 1, 1], 0.12))]);
    }
    return list;
  }

  // capsules that stand in for a surface, which joints alone don't have
  const FLESH = { 1: 0.09, 2: 0.09, 3: 0.1, 4: 0.07, 5: 0.07, 6: 0.1, 7: 0.048, 8: 0.048, 9: 0.11, 10: 0.036, 11: 0.036, 12: 0.055, 13: 0.07, 14: 0.07, 15: 0.085, 16: 0.06, 17: 0.06, 18: 0.045, 19: 0.045, 20: 0.035, 21: 0.035 };
  function figure(body, tint, marks) {
    const point = (j) => Array.from(body.points.subarray(3 * j, 3 * j + 3));
    return Array.from({ length: BODY - 1 }, (_, i) => i + 1).map((j) => {
      const touched = marks && body.touch[j] > 0.5;
      return [...point(data.parents[j]), ...point(j), FLESH[j], FLESH[j] * 0.85, ...(touched ? colors.contact : tint)];
    });
  }

  function drawPanel(rect, shown, way) {
    const [x, y, width, height] = rect;
    gl.viewport(x, y, width, height);
    gl.scissor(x, y, width, height);
    gl.clearColor(...colors.surface, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT | gl.STENCIL_BUFFER_BIT);
    const camera = cameraFor(width, height, way), ratio = window.devicePixelRatio || 1;
    const bodies = shown.map((index) => ({ index, actor: actors[index], tint: colors.actors[index], body: pose(actors[index], actors[index].solid, state.time) }))
      .filter((one) => one.body);
    const solid = (actor) => state.show !== "skeleton" && actor.shapes.length > 0;

    gl.depthMask(false);
    let uniforms = use(floor, camera);
    gl.uniform2fv(uniforms.center, camera.center);
    gl.uniform1f(uniforms.reach, Math.max(4.5, 1.6 * data.view.across));
    gl.uniform3fv(uniforms.color, mix(colors.line, colors.muted, 0.25));
    gl.bindVertexArray(quad);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);

    gl.enable(gl.STENCIL_TEST);
    gl.stencilFunc(gl.EQUAL, 0, 255);
    gl.stencilOp(gl.KEEP, gl.KEEP, gl.INCR);
    gl.disable(gl.CULL_FACE);
    for (const { actor, body } of bodies) {
      if (actor.shapes.length) drawSkin(camera, actor, actor.solid, body, { color: colors.dark ? [0, 0, 0] : colors.ink, alpha: colors.dark ? 0.38 : 0.12, shadow: true });
    }
    gl.enable(gl.CULL_FACE);
    gl.disable(gl.STENCIL_TEST);

    if (state.contacts) {
      uniforms = use(disc, camera);
      gl.uniform1f(uniforms.radius, 0.1);
      gl.bindVertexArray(quad);
      for (const { body } of bodies) {
        for (let j = 1; j < BODY; j += 1) {
          if (body.touch[j] < 0.5 || Math.abs(body.points[3 * j + 2]) > 0.2) continue;
          gl.uniform3f(uniforms.center, body.points[3 * j], body.points[3 * j + 1], 0);
          gl.uniform4f(uniforms.color, ...colors.contact, 0.4);
          gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
        }
      }
    }
    gl.depthMask(true);
    const paths = [...new Set(shown.map((index) => actors[index].head))].filter((index) => index !== null);
    if (state.head) for (const index of paths) drawRods(camera, rect, headPath(heads[index], ratio), false);

    // pale figures: surfaces after the bodies, which shine through them; skeletons before, so that they stay behind
    const ghosts = [];
    if (state.truth && truth && !truth.hidden && !shown.includes(actors.indexOf(truth))) ghosts.push([actors.indexOf(truth), 0, 0.34]);
    if (state.samples) for (const { index, actor } of bodies) for (let s = 0; s < actor.samples; s += 1) if (s !== actor.solid) ghosts.push([index, s, 0.24]);
    const pale = ghosts.map(([index, sample, alpha]) => ({ index, sample, alpha, actor: actors[index], body: pose(actors[index], sample, state.time) }))
      .filter((one) => one.body);
    const asSurface = (one) => state.show === "mesh" && solid(one.actor);
    gl.depthMask(false);
    for (const one of pale.filter((other) => !asSurface(other))) {
      drawRods(camera, rect, skeleton(one.body, mix(colors.surface, colors.actors[one.index], one.alpha + 0.12), false, 0.6), false);
    }
    gl.depthMask(true);
    for (const { actor, tint, body } of bodies) {
      if (solid(actor) && state.show === "mesh") drawSkin(camera, actor, actor.solid, body, { color: tint, alpha: 1, shaded: true, marks: true });
      else if (state.show === "mesh") drawRods(camera, rect, figure(body, tint, true), true);
      else drawRods(camera, rect, skeleton(body, tint, true), true);
    }
    for (const one of pale.filter(asSurface)) drawPale(camera, one.actor, one.sample, one.body, colors.actors[one.index], one.alpha);
    if (state.show === "both") for (const { actor, tint, body } of bodies) if (solid(actor)) drawPale(camera, actor, actor.solid, body, tint, 0.36, true);
    if (state.head) for (const index of paths) drawRods(camera, rect, frustum(heads[index], ratio), false);
  }

  // ten seconds before and after now
  function headPath(head, ratio) {
    const reach = Math.round(10 * data.fps), now = frameNow();
    const from = Math.max(0, now - reach), to = Math.min(T - 1, now + reach), step = Math.max(1, Math.ceil((to - from) / 400));
    const list = [];
    for (let a = from; a < to; a += step) {
      const b = Math.min(a + step, to);
      const p = head.subarray(7 * a + 4, 7 * a + 7), q = head.subarray(7 * b + 4, 7 * b + 7);
      if (Number.isNaN(p[0]) || Number.isNaN(q[0])) continue;
      list.push([...p, ...q, -1.3 * ratio, -1.3 * ratio, ...(a < now ? mix(colors.muted, colors.ink, 0.3) : mix(colors.surface, colors.muted, 0.45))]);
    }
    return list;
  }

  function frustum(head, ratio) {
    const at = 7 * frameNow(), [w, x, y, z] = head.subarray(at, at + 4), origin = Array.from(head.subarray(at + 4, at + 7));
    if (Number.isNaN(w)) return [];
    const turn = (v) => [
      (1 - 2 * (y * y + z * z)) * v[0] + 2 * (x * y - z * w) * v[1] + 2 * (x * z + y * w) * v[2] + origin[0],
      2 * (x * y + z * w) * v[0] + (1 - 2 * (x * x + z * z)) * v[1] + 2 * (y * z - x * w) * v[2] + origin[1],
      2 * (x * z - y * w) * v[0] + 2 * (y * z + x * w) * v[1] + (1 - 2 * (x * x + y * y)) * v[2] + origin[2],
    ];
    const corners = [[1, 1], [-1, 1], [-1, -1], [1, -1]].map(([i, j]) => turn([i * FRUSTUM[0], j * FRUSTUM[1], FRUSTUM[2]]));
    const line = (p, q) => [...p, ...q, -1.1 * ratio, -1.1 * ratio, ...colors.ink];
    return corners.flatMap((corner, i) => [line(origin, corner), line(corner, corners[(i + 1) % 4])]);
  }

  function draw() {
    pending = false;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    gl.enable(gl.SCISSOR_TEST);
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LESS);
    gl.enable(gl.CULL_FACE);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    const every = actors.map((_, index) => index);
    if (state.layout === "overlay") drawPanel([0, 0, width, height], every.filter((index) => !actors[index].hidden));
    else {
      const edge = (i) => Math.round((width * i) / actors.length);
      every.forEach((index) => drawPanel([edge(index), 0, edge(index + 1) - edge(index), height], actors[index].hidden ? [] : [index], actors[index].centers));
      gl.clearColor(...colors.line, 1);
      every.slice(1).forEach((index) => {
        gl.scissor(edge(index), 0, Math.max(1, Math.round(ratio)), height);
        gl.clear(gl.COLOR_BUFFER_BIT);
      });
    }
    showTime();
  }

  function redraw() {
    if (!pending) {
      pending = true;
      requestAnimationFrame(draw);
    }
  }

  // ---- time ------------------------------------------------------------------------------------------------------------------------

  const range = $("time");
  function showTime() {
    const frame = frameNow(), seconds = (data.start + frame / data.fps).toFixed(2);
    range.value = String(frame);
    range.setAttribute("aria-valuetext", `frame ${frame + 1} of ${T}, ${seconds} seconds`);
    $("seconds").textContent = `${seconds} s`;
    $("frame").textContent = `frame ${frame + 1} / ${T}`;
    const x = String((1000 * state.time) / Math.max(T - 1, 1));
    $("cursor").setAttribute("x1", x);
    $("cursor").setAttribute("x2", x);
    actors.forEach((actor, i) => {
      const text = $("captions").children[i].querySelector("span");
      const error = actor.error ? actor.error[actor.solid * T + frame] : NaN;
      if (Number.isNaN(actor.root[3 * frame])) text.textContent = "no frame here";
      else if (!Number.isNaN(error)) text.textContent = `${error.toFixed(0)} mm now, ${actor.means[actor.solid].toFixed(0)} mm on average`;
      else text.textContent = actor.samples > 1 ? `sample ${actor.numbers[actor.solid]}, ${actor.samples - 1} more` : actor.truth ? "recorded motion" : "";
    });
    root.dataset.frame = String(frame);
    root.dataset.playing = String(state.playing);
  }

  let lastTick = 0;
  function tick(now) {
    if (!state.playing) return;
    const elapsed = Math.min((now - lastTick) / 1000, 0.1), end = T - 1;
    lastTick = now;
    state.time += elapsed * data.fps * state.speed;
    // a moment's rest on the last frame before it begins again
    if (state.time >= end + 0.4 * data.fps * state.speed) state.time = 0;
    const held = state.time;
    state.time = Math.min(state.time, end);
    draw();
    state.time = held;
    requestAnimationFrame(tick);
  }

  const ICONS = ['<svg viewBox="0 0 20 20" aria-hidden="true"><path d="M5 2.5v15l12-7.5z"/></svg>', '<svg viewBox="0 0 20 20" aria-hidden="true"><path d="M4 3h4v14H4zM12 3h4v14h-4z"/></svg>'];
  function play(on) {
    state.playing = on && T > 1;
    if (!state.playing) state.time = frameNow();
    $("play").innerHTML = ICONS[Number(state.playing)];
    $("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
    if (state.playing) {
      lastTick = performance.now();
      requestAnimationFrame(tick);
    } else redraw();
  }
  function seek(frame) {
    play(false);
    state.time = clamp(frame, 0, T - 1);
    redraw();
  }

  // ---- chart and names -------------------------------------------------------------------------------------------------------------

  function showChart() {
    // of all samples, so that they can be compared
    const values = actors.flatMap((actor) => (actor.curve ? actor.curve[1].flat() : [])).filter((value) => value !== null);
    const most = values.length ? Math.max(...values) : 0;
    if (!most) {
      $("chartbox").style.display = "none";
      return;
    }
    const power = 10 ** Math.floor(Math.log10(most));
    const top = [1, 2, 4, 5, 8, 10].map((step) => step * power).find((end) => end >= most * (1 - 1e-9));
    $("scale").textContent = `mean joint error, 0 to ${top} mm`;
    $("curves").replaceChildren();
    actors.forEach((actor, index) => {
      if (!actor.curve) return;
      let path = "", pen = "M";
      actor.curve[0].forEach((frame, i) => {
        const value = actor.curve[1][actor.solid][i];
        if (value === null) pen = "M";
        else {
          path += `${pen}${((1000 * frame) / Math.max(T - 1, 1)).toFixed(1)} ${(100 - (100 * value) / top).toFixed(1)}`;
          pen = "L";
        }
      });
      const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      line.setAttribute("d", path);
      line.dataset.actor = String(index);
      $("curves").append(line);
    });
  }

  for (const [index, actor] of actors.entries()) {
    const item = document.createElement("div");
    item.className = "caption";
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.title = "Show or hide";
    const name = document.createElement("b");
    name.textContent = actor.name;
    button.append(name, document.createElement("span"));
    button.addEventListener("click", () => {
      actors[index].hidden = !actors[index].hidden;
      button.setAttribute("aria-pressed", String(!actors[index].hidden));
      redraw();
    });
    item.append(button);
    $("captions").append(item);
  }

  // ---- controls --------------------------------------------------------------------------------------------------------------------

  function setLayout(layout) {
    state.layout = layout;
    for (const name of ["side", "overlay"]) $(name).setAttribute("aria-pressed", String(name === layout));
    $("captions").classList.toggle("overlay", layout === "overlay");
    redraw();
  }
  function setShow(show) {
    state.show = show;
    for (const name of ["mesh", "skeleton", "both"]) $(name).setAttribute("aria-pressed", String(name === show));
    redraw();
  }
  for (const name of ["side", "overlay"]) $(name).addEventListener("click", () => setLayout(name));
  for (const name of ["mesh", "skeleton", "both"]) $(name).addEventListener("click", () => setShow(name));
  // samples by their numbers in the files, the solid one chosen; a motion that has no such number keeps its own
  const several = actors.filter((actor) => actor.samples > 1);
  const numbers = [...new Set(several.flatMap((actor) => actor.numbers))].sort((a, b) => a - b);
  $("sample").append(...numbers.map((number) => new Option(String(number), String(number), several[0].numbers[0] === number, several[0].numbers[0] === number)));
  $("sample").addEventListener("change", (event) => {
    for (const actor of several) {
      const found = actor.numbers.indexOf(Number(event.target.value));
      if (found >= 0) actor.solid = found;
    }
    showChart();
    readColors();
    redraw();
  });
  for (const name of ["samples", "truth", "head", "contacts", "follow"]) {
    $(name).addEventListener("change", () => {
      state[name] = $(name).checked;
      redraw();
    });
  }
  const hide = (name, gone) => { if (gone) $(name).closest("label, .segmented").style.display = "none"; };
  hide("samples", !several.length);
  hide("sample", !several.length);
  hide("truth", !truth || actors.length < 2);
  hide("head", !heads.length);
  hide("contacts", !actors.some((actor) => actor.contacts));
  hide("side", actors.length < 2);
  $("play").addEventListener("click", () => play(!state.playing));
  range.max = String(T - 1);
  range.addEventListener("input", () => seek(Number(range.value)));
  $("speed").addEventListener("change", (event) => { state.speed = Number(event.target.value); });
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    readColors();
    redraw();
  });
  const reset = () => {
    Object.assign(state, HOME, { pan: [0, 0, 0] });
    redraw();
  };
  $("reset").addEventListener("click", reset);

  const zoom = (factor) => {
    state.zoom = clamp(state.zoom * factor, 0.2, 8);
    redraw();
  };
  const orbit = (turn, tilt) => {
    state.turn += turn;
    state.elevation = clamp(state.elevation + tilt, -0.1, 1.55);
    redraw();
  };
  const move = (dx, dy) => {
    const camera = cameraFor(canvas.clientWidth, canvas.clientHeight), metres = camera.distance / camera.focal;
    state.pan = state.pan.map((value, k) => value + metres * (-dx * camera.right[k] + dy * camera.up[k]));
    redraw();
  };
  const pointers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY], dx = now[0] - before[0], dy = now[1] - before[1];
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const was = Math.hypot(before[0] - other[0], before[1] - other[1]), is = Math.hypot(now[0] - other[0], now[1] - other[1]);
      if (was > 5) zoom(is / was);
    } else if (event.shiftKey || event.buttons & 2) move(dx, dy);
    else orbit(-0.008 * dx, 0.006 * dy);
    pointers.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-clamp(event.deltaY, -80, 80) * 0.003));
  }, { passive: false });

  const chart = $("chart");
  const seekAt = (event) => {
    const box = chart.getBoundingClientRect();
    seek(Math.round(((event.clientX - box.left) / box.width) * (T - 1)));
  };
  chart.addEventListener("pointerdown", (event) => {
    chart.setPointerCapture(event.pointerId);
    seekAt(event);
  });
  chart.addEventListener("pointermove", (event) => { if (event.buttons) seekAt(event); });

  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === "SELECT") return;
    const onRange = event.target === range, onButton = event.target.tagName === "BUTTON" || event.target.type === "checkbox";
    const step = event.shiftKey ? 10 : 1, shows = ["mesh", "skeleton", "both"];
    const actions = {
      ArrowRight: onRange && step === 1 ? null : () => seek(frameNow() + step),
      ArrowLeft: onRange && step === 1 ? null : () => seek(frameNow() - step),
      Home: onRange ? null : () => seek(0),
      End: onRange ? null : () => seek(T - 1),
      " ": onButton ? null : () => play(!state.playing),
      m: () => setShow(shows[(shows.indexOf(state.show) + 1) % 3]),
      o: () => setLayout(state.layout === "side" ? "overlay" : "side"),
      f: () => $("follow").click(),
      r: reset,
    };
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  });

  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => location.reload());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColors();
    redraw();
  });
  new ResizeObserver(redraw).observe(canvas);
  showChart();
  readColors();
  setLayout(actors.length < 2 ? "overlay" : state.layout);
  setShow(state.show);
  play(false);
  draw();
  root.dataset.ready = "true";
})();
