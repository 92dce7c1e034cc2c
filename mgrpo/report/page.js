"use strict";
(() => {
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
  const darkScheme = matchMedia("(prefers-color-scheme: dark)");
  const TURN = 2 * Math.PI;
  const FOCAL = 2.4; // panel heights, as in the films
  const SLANT = [0.35, -0.2];
  const REST = 0.4; // seconds
  const NEAR = 0.12;
  const HEADROOM = 44; // pixels kept free for the names above the figures

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // ---- colours -------------------------------------------------------------------------------------------------------------------

  const parseColor = (text) => [1, 3, 5].map((start) => parseInt(text.trim().slice(start, start + 2), 16));
  const mix = (a, b, amount) => a.map((channel, i) => Math.round(channel + (b[i] - channel) * amount));
  const css = (color, alpha = 1) => `rgb(${color[0]} ${color[1]} ${color[2]} / ${alpha})`;

  function readPalette() {
    const style = getComputedStyle(document.documentElement);
    const palette = {};
    for (const role of ["ground-truth", "prior", "post-trained", "ink", "muted", "line", "surface"]) {
      palette[role.replace("-", "_")] = parseColor(style.getPropertyValue(`--${role}`));
    }
    return palette;
  }

  // ---- motion data ---------------------------------------------------------------------------------------------------------------

  function bytes(base64) {
    const text = atob(base64);
    const out = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) out[i] = text.charCodeAt(i);
    return out;
  }

  // 16-bit steps of `unit` metres from an origin; the smallest number marks a missing value
  function metres(base64, unit, origin) {
    const raw = bytes(base64);
    const view = new DataView(raw.buffer);
    const out = new Float32Array(raw.length / 2);
    for (let i = 0; i < out.length; i += 1) {
      const value = view.getInt16(2 * i, true);
      out[i] = value === -32768 ? NaN : value * unit + origin[i % origin.length];
    }
    return out;
  }

  function decodeClip(clip) {
    if (clip.decoded) return clip.decoded;
    const { unit, origin } = clip;
    clip.decoded = {
      centers: metres(clip.centers, unit, origin.slice(0, 2)),
      head: clip.head ? metres(clip.head, unit, origin) : null,
      gaze: clip.gaze ? Float32Array.from(new Int8Array(bytes(clip.gaze).buffer), (v) => v / 127) : null,
      tracks: clip.tracks.map((track) => ({
        samples: track.samples.map((sample) => metres(sample, unit, origin)),
        contacts: track.contacts ? bytes(track.contacts) : null,
      })),
    };
    return clip.decoded;
  }

  // ---- camera --------------------------------------------------------------------------------------------------------------------

  // zoom lengthens the lens instead of moving the camera, so that near limbs never swell
  function makeCamera(target, azimuth, elevation, distance, zoom, width, height) {
    const ce = Math.cos(elevation), se = Math.sin(elevation), ca = Math.cos(azimuth), sa = Math.sin(azimuth);
    const focal = FOCAL * height * zoom;
    const middle = height / 2 + HEADROOM / 2;
    return {
      width, height,
      // x, y in pixels, pixels per metre, distance from the camera plane in metres
      project(x, y, z) {
        const dx = x - target[0], dy = y - target[1], dz = z - target[2];
        const depth = distance - (dx * ce * ca + dy * ce * sa + dz * se);
        const scale = focal / Math.max(depth, 0.02);
        return [
          width / 2 + (-dx * sa + dy * ca) * scale,
          middle - (-dx * se * ca - dy * se * sa + dz * ce) * scale,
          scale,
          depth,
        ];
      },
      // a segment cut off in front of the camera, or null
      segment(a, b) {
        const depthOf = (p) => distance - ((p[0] - target[0]) * ce * ca + (p[1] - target[1]) * ce * sa + (p[2] - target[2]) * se);
        let da = depthOf(a), db = depthOf(b);
        if (da < NEAR && db < NEAR) return null;
        const cut = (p, q, dp, dq) => {
          const s = (NEAR - dp) / (dq - dp);
          return [0, 1, 2].map((i) => p[i] + (q[i] - p[i]) * s);
        };
        if (da < NEAR) a = cut(a, b, da, db);
        else if (db < NEAR) b = cut(b, a, db, da);
        return [this.project(...a), this.project(...b)];
      },
    };
  }

  // ---- drawing -------------------------------------------------------------------------------------------------------------------

  // outline of the hull of two discs
  function capsule(ctx, x1, y1, r1, x2, y2, r2) {
    const distance = Math.max(Math.hypot(x2 - x1, y2 - y1), 1e-6);
    const along = Math.atan2(y2 - y1, x2 - x1);
    const tangent = Math.acos(clamp((r1 - r2) / distance, -1, 1));
    ctx.moveTo(x1 + r1 * Math.cos(along + tangent), y1 + r1 * Math.sin(along + tangent));
    ctx.arc(x1, y1, r1, along + tangent, along - tangent + TURN);
    ctx.arc(x2, y2, r2, along - tangent, along + tangent);
    ctx.closePath();
  }

  function drawFloor(ctx, camera, center, palette) {
    const cell = 0.5;
    ctx.lineWidth = 1;
    for (const [fade, reach] of [[0.35, 3.1], [0.35, 2.5], [0.5, 1.9]]) {
      ctx.beginPath();
      for (const axis of [0, 1]) {
        const first = Math.ceil((center[axis] - reach) / cell);
        const last = Math.floor((center[axis] + reach) / cell);
        for (let i = first; i <= last; i += 1) {
          const value = i * cell;
          const half = Math.sqrt(Math.max(reach * reach - (value - center[axis]) ** 2, 0));
          const from = [0, 0, 0], to = [0, 0, 0];
          from[axis] = to[axis] = value;
          from[1 - axis] = center[1 - axis] - half;
          to[1 - axis] = center[1 - axis] + half;
          const line = camera.segment(from, to);
          if (line) {
            ctx.moveTo(line[0][0], line[0][1]);
            ctx.lineTo(line[1][0], line[1][1]);
          }
        }
      }
      ctx.strokeStyle = css(mix(palette.line, palette.muted, 0.18), fade);
      ctx.stroke();
    }
  }

  function drawDisc(ctx, camera, x, y, radius, color) {
    ctx.beginPath();
    for (let i = 0; i < 24; i += 1) {
      const angle = (i / 24) * 2 * Math.PI;
      const [px, py, , depth] = camera.project(x + radius * Math.cos(angle), y + radius * Math.sin(angle), 0);
      if (depth < NEAR) return;
      if (i) ctx.lineTo(px, py);
      else ctx.moveTo(px, py);
    }
    ctx.closePath();
    ctx.fillStyle = color;
    ctx.fill();
  }

  function drawShadow(ctx, camera, figure, points, color) {
    ctx.beginPath();
    for (const [a, b, ra, rb] of figure.limbs) {
      const ax = points[a][0] + points[a][2] * SLANT[0], ay = points[a][1] + points[a][2] * SLANT[1];
      const bx = points[b][0] + points[b][2] * SLANT[0], by = points[b][1] + points[b][2] * SLANT[1];
      const along = Math.atan2(by - ay, bx - ax);
      const tangent = Math.acos(clamp((ra - rb) / Math.max(Math.hypot(bx - ax, by - ay), 1e-6), -1, 1));
      let started = false;
      for (const [x, y, r, from, span] of [
        [ax, ay, ra, along + tangent, 2 * Math.PI - 2 * tangent],
        [bx, by, rb, along - tangent, 2 * tangent],
      ]) {
        for (let i = 0; i <= 6; i += 1) {
          const angle = from + (span * i) / 6;
          const [px, py, , depth] = camera.project(x + r * Math.cos(angle), y + r * Math.sin(angle), 0);
          if (depth < NEAR) continue;
          if (started) ctx.lineTo(px, py);
          else ctx.moveTo(px, py);
          started = true;
        }
      }
      ctx.closePath();
    }
    ctx.fillStyle = color;
    ctx.fill();
  }

  function drawSilhouette(ctx, camera, figure, points, color) {
    ctx.beginPath();
    const projected = points.map((p) => camera.project(...p));
    if (projected.some((p) => p[3] < NEAR)) return;
    for (const [a, b, ra, rb] of figure.limbs) {
      const p = projected[a], q = projected[b];
      capsule(ctx, p[0], p[1], ra * p[2], q[0], q[1], rb * q[2]);
    }
    ctx.fillStyle = color;
    ctx.fill("nonzero");
  }

  // the shaded parts of a body as [depth, draw function], to be sorted together with those of other bodies
  function bodyParts(ctx, camera, figure, points, color, palette) {
    const projected = points.map((p) => camera.project(...p));
    if (projected.some((p) => p[3] < NEAR)) return [];
    const edge = Math.max(0.7, camera.height / 520);
    const parts = figure.limbs.filter((limb) => !limb[5]).map((limb) => [limb]);
    const trunk = figure.limbs.filter((limb) => limb[5]);
    if (trunk.length) parts.push(trunk);
    const depths = parts.map((part) => part.reduce((sum, [a, b]) => sum + projected[a][3] + projected[b][3], 0) / (2 * part.length));
    const near = Math.min(...depths), far = Math.max(...depths);
    return parts.map((part, index) => {
      let base = mix(color, [0, 0, 0], part[0][4] < 0 ? 0.2 : 0);
      base = mix(base, palette.surface, (0.16 * (depths[index] - near)) / Math.max(far - near, 1e-6));
      const layers = [
        [0, 0, 1, edge, mix(base, [0, 0, 0], 0.42)],
        [0, 0, 1, 0, mix(base, [0, 0, 0], 0.2)],
        [-0.13, -0.16, 0.78, 0, base],
        [-0.3, -0.36, 0.4, 0, mix(base, [255, 255, 255], 0.28)],
      ];
      return [depths[index], () => {
        for (const [sx, sy, grow, extra, tone] of layers) {
          ctx.beginPath();
          for (const [a, b, ra, rb] of part) {
            const p = projected[a], q = projected[b];
            const r1 = ra * p[2], r2 = rb * q[2];
            capsule(ctx, p[0] + sx * r1, p[1] + sy * r1, r1 * grow + extra, q[0] + sx * r2, q[1] + sy * r2, r2 * grow + extra);
          }
          ctx.fillStyle = css(tone);
          ctx.fill("nonzero");
        }
      }];
    });
  }

  function drawPath(ctx, camera, values, from, to, color, width, dash) {
    ctx.beginPath();
    for (let i = from; i < to; i += 1) {
      const a = [values[3 * i], values[3 * i + 1], values[3 * i + 2]];
      const b = [values[3 * i + 3], values[3 * i + 4], values[3 * i + 5]];
      if (!a.every(Number.isFinite) || !b.every(Number.isFinite)) continue;
      const line = camera.segment(a, b);
      if (line) {
        ctx.moveTo(line[0][0], line[0][1]);
        ctx.lineTo(line[1][0], line[1][1]);
      }
    }
    ctx.strokeStyle = color;
    ctx.lineWidth = width;
    ctx.lineCap = "round";
    ctx.setLineDash(dash);
    ctx.stroke();
    ctx.setLineDash([]);
  }

  // ---- player --------------------------------------------------------------------------------------------------------------------

  function makePlayer(root, data) {
    const $ = (name) => root.querySelector(`[data-part="${name}"]`);
    const canvas = $("canvas"), ctx = canvas.getContext("2d"), range = $("time"), captions = $("captions");
    const home = { elevation: 0.24, zoom: 1 };
    const state = { clip: 0, time: 0, playing: false, speed: 1, overlay: false, turn: 0, ...home, visible: true };
    const option = (name) => $(name).checked;
    let palette = readPalette();
    let pending = false;
    let lastTick = 0;

    const clip = () => data.clips[state.clip];
    const figure = () => data.figures[clip().figure];
    const frameNow = () => clamp(Math.round(state.time), 0, clip().frames - 1);

    function points(values, joints) {
      const frames = clip().frames;
      const lower = Math.floor(state.time), upper = Math.min(lower + 1, frames - 1), share = state.time - lower;
      const out = [];
      for (let j = 0; j < joints; j += 1) {
        const p = [0, 0, 0];
        for (let k = 0; k < 3; k += 1) {
          const a = values[(lower * joints + j) * 3 + k];
          p[k] = share > 0 ? a + (values[(upper * joints + j) * 3 + k] - a) * share : a;
        }
        if (!p.every(Number.isFinite)) return null;
        out.push(p);
      }
      for (const [start, end, length] of figure().extensions) {
        const a = out[start], b = out[end];
        const norm = Math.max(Math.hypot(b[0] - a[0], b[1] - a[1], b[2] - a[2]), 1e-6);
        out.push(b.map((value, k) => value + ((value - a[k]) / norm) * length));
      }
      return out;
    }

    function drawPanel(left, width, height, roles) {
      const c = clip(), motion = decodeClip(c), frame = frameNow();
      const center = [0, 1].map((k) => {
        if (!option("follow")) return c.middle[k];
        const lower = Math.floor(state.time), upper = Math.min(lower + 1, c.frames - 1);
        const a = motion.centers[2 * lower + k];
        return a + (motion.centers[2 * upper + k] - a) * (state.time - lower);
      });
      const across = option("follow") ? c.across : c.across_all;
      // on a phone the figures may reach over a panel's edge at their widest, or they would be tiny throughout
      const margin = width < 200 && option("follow") ? 0.78 : 1;
      const fit = FOCAL * Math.max((margin * across) / (0.5 * (width / height)), (c.up / 0.5) * (height / (height - HEADROOM))) * 1.06 + 0.35 * across;
      const camera = makeCamera([...center, c.height], c.azimuth + state.turn, state.elevation, fit, state.zoom, width, height);
      ctx.save();
      ctx.beginPath();
      ctx.rect(left, 0, width, height);
      ctx.clip();
      ctx.translate(left, 0);

      const shown = c.tracks.map((track, index) => ({ track, index })).filter(({ track }) => roles.includes(track.role));
      const bodies = shown
        .map(({ track, index }) => ({ track, index, points: points(motion.tracks[index].samples[0], c.joints) }))
        .filter((body) => body.points);
      for (const body of bodies) {
        drawShadow(ctx, camera, figure(), body.points, css(mix(palette.surface, darkScheme.matches ? [0, 0, 0] : palette.ink, darkScheme.matches ? 0.35 : 0.09)));
      }
      drawFloor(ctx, camera, center, palette);

      if (option("contacts")) {
        for (const body of bodies) {
          const contacts = motion.tracks[body.index].contacts;
          if (!contacts) continue;
          for (let j = 1; j < c.joints; j += 1) {
            const strength = contacts[frame * (c.joints - 1) + j - 1] / 255;
            const p = body.points[j];
            if (strength > 0.25 && p[2] < 0.2) drawDisc(ctx, camera, p[0], p[1], 0.095, css(palette[body.track.role], 0.5 * strength));
          }
        }
      }
      if (option("trail") && motion.head) {
        const color = roles.length > 1 ? palette.ink : palette[roles[0]];
        drawPath(ctx, camera, motion.head, frame, c.frames - 1, css(palette.muted, 0.35), 1.6, [2, 5]);
        drawPath(ctx, camera, motion.head, 0, frame, css(color, 0.55), 2, []);
      }
      if (option("samples")) {
        for (const { track, index } of shown) {
          for (const sample of motion.tracks[index].samples.slice(1)) {
            const ghost = points(sample, c.joints);
            if (ghost) drawSilhouette(ctx, camera, figure(), ghost, css(palette[track.role], 0.16));
          }
        }
      }
      if (option("truth") && !roles.includes("ground_truth")) {
        const truth = points(motion.tracks[0].samples[0], c.joints);
        if (truth) drawSilhouette(ctx, camera, figure(), truth, css(palette.ground_truth, 0.26));
      }
      const parts = bodies.flatMap((body) => bodyParts(ctx, camera, figure(), body.points, palette[body.track.role], palette));
      parts.sort((a, b) => b[0] - a[0]);
      for (const [, draw] of parts) draw();

      if (option("trail") && motion.head && motion.gaze) {
        const from = [0, 1, 2].map((k) => motion.head[3 * frame + k]);
        const to = from.map((value, k) => value + 0.3 * motion.gaze[3 * frame + k]);
        const line = from.every(Number.isFinite) && to.every(Number.isFinite) ? camera.segment(from, to) : null;
        if (line) {
          const [[x1, y1], [x2, y2]] = line;
          const angle = Math.atan2(y2 - y1, x2 - x1), size = Math.min(7, 0.4 * Math.hypot(x2 - x1, y2 - y1));
          ctx.strokeStyle = ctx.fillStyle = css(palette.ink, 0.8);
          ctx.lineWidth = 1.6;
          ctx.beginPath();
          ctx.moveTo(x1, y1);
          ctx.lineTo(x2 - size * 0.7 * Math.cos(angle), y2 - size * 0.7 * Math.sin(angle));
          ctx.stroke();
          ctx.beginPath();
          ctx.moveTo(x2, y2);
          ctx.lineTo(x2 - size * Math.cos(angle - 0.42), y2 - size * Math.sin(angle - 0.42));
          ctx.lineTo(x2 - size * Math.cos(angle + 0.42), y2 - size * Math.sin(angle + 0.42));
          ctx.closePath();
          ctx.fill();
        }
      }
      ctx.restore();
    }

    function draw() {
      pending = false;
      const width = canvas.clientWidth;
      if (!width) return;
      const height = Math.round(clamp(width * 0.46, 330, 500));
      const ratio = Math.min(window.devicePixelRatio || 1, 3);
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
        canvas.style.height = `${height}px`;
      }
      ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
      ctx.fillStyle = css(palette.surface);
      ctx.fillRect(0, 0, width, height);
      const roles = clip().tracks.map((track) => track.role);
      if (state.overlay) drawPanel(0, width, height, roles);
      else {
        roles.forEach((role, i) => drawPanel((width * i) / roles.length, width / roles.length, height, [role]));
        ctx.fillStyle = css(palette.line);
        for (let i = 1; i < roles.length; i += 1) ctx.fillRect(Math.round((width * i) / roles.length), 0, 1, height);
      }
      showTime();
    }

    function redraw() {
      if (!pending) {
        pending = true;
        requestAnimationFrame(draw);
      }
    }

    function showTime() {
      const c = clip(), frame = frameNow();
      range.value = String(frame);
      const seconds = (frame / c.fps).toFixed(2);
      range.setAttribute("aria-valuetext", `frame ${frame + 1} of ${c.frames}, ${seconds} seconds`);
      $("seconds").textContent = `${seconds} s`;
      $("frame").textContent = `frame ${frame + 1}/${c.frames}`;
      $("cursor").setAttribute("x1", String((1000 * state.time) / Math.max(c.frames - 1, 1)));
      $("cursor").setAttribute("x2", $("cursor").getAttribute("x1"));
      c.tracks.forEach((track, i) => {
        const text = captions.children[i].querySelector("span");
        const error = track.error ? track.error[frame] : null;
        if (track.role === "ground_truth") text.textContent = c.name;
        else text.textContent = error === null ? "" : `error ${error.toFixed(0)} mm`;
      });
      root.dataset.frame = String(frame);
      root.dataset.playing = String(state.playing);
    }

    function tick(now) {
      if (!state.playing) return;
      const elapsed = Math.min((now - lastTick) / 1000, 0.1);
      lastTick = now;
      const end = clip().frames - 1;
      if (end > 0) {
        state.time += elapsed * clip().fps * state.speed;
        // a moment's rest on the last frame before the clip begins again
        if (state.time >= end + REST * clip().fps * state.speed) state.time = 0;
      }
      const held = state.time;
      state.time = Math.min(state.time, end);
      if (state.visible) draw();
      state.time = held;
      requestAnimationFrame(tick);
    }

    function play(on) {
      if (on === state.playing) return;
      state.playing = on;
      if (!on) state.time = frameNow();
      $("play").setAttribute("aria-label", on ? "Pause" : "Play");
      $("play").innerHTML = on
        ? '<svg viewBox="0 0 20 20" aria-hidden="true"><path d="M4 3h4v14H4zM12 3h4v14h-4z"/></svg>'
        : '<svg viewBox="0 0 20 20" aria-hidden="true"><path d="M5 2.5v15l12-7.5z"/></svg>';
      if (on) {
        lastTick = performance.now();
        requestAnimationFrame(tick);
      } else redraw();
      root.dataset.playing = String(on);
    }

    function seek(frame) {
      play(false);
      state.time = clamp(frame, 0, clip().frames - 1);
      redraw();
    }

    function showErrors() {
      const c = clip();
      const all = c.tracks.flatMap((track) => (track.error || []).filter((v) => v !== null));
      const top = all.length ? Math.max(...all) : 0;
      const svg = $("errors");
      svg.querySelectorAll(".line").forEach((line) => line.remove());
      $("scale").textContent = top ? `0 to ${top.toFixed(0)} mm` : "";
      $("scale-name").textContent = top ? "mean joint error in each frame" : "time";
      svg.style.display = top ? "" : "none";
      for (const track of c.tracks) {
        if (!track.error || track.role === "ground_truth" || !top) continue;
        let path = "", pen = "M";
        track.error.forEach((value, i) => {
          if (value === null) {
            pen = "M";
            return;
          }
          path += `${pen}${((1000 * i) / Math.max(c.frames - 1, 1)).toFixed(1)} ${(60 - (56 * value) / top).toFixed(1)}`;
          pen = "L";
        });
        const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
        line.setAttribute("class", "line");
        line.setAttribute("d", path);
        line.style.stroke = `var(--${track.role.replace("_", "-")})`;
        svg.insertBefore(line, $("cursor"));
      }
    }

    function showClip(index) {
      state.clip = index;
      state.time = 0;
      const c = clip();
      captions.textContent = "";
      captions.style.setProperty("--columns", String(c.tracks.length));
      for (const track of c.tracks) {
        const item = document.createElement("div");
        item.className = "caption";
        item.style.setProperty("--c", `var(--${track.role.replace("_", "-")})`);
        const name = document.createElement("b");
        name.textContent = track.label;
        item.append(name, document.createElement("span"));
        captions.append(item);
      }
      range.max = String(c.frames - 1);
      // a clip of a second or two would only flicker by
      state.speed = c.frames / c.fps < 2 ? 0.5 : 1;
      $("speed").value = String(state.speed);
      $("caption").textContent = c.caption;
      const several = c.tracks.some((track) => track.samples.length > 1);
      $("samples").closest("label").style.display = several ? "" : "none";
      $("trail").closest("label").style.display = c.head ? "" : "none";
      canvas.setAttribute(
        "aria-label",
        `Animated figures of the clip ${c.name}: ${c.tracks.map((t) => t.label).join(", ")}. Drag or use the keys A, D, W, S to turn the view.`,
      );
      showErrors();
      redraw();
    }

    // controls
    $("play").addEventListener("click", () => play(!state.playing));
    range.addEventListener("input", () => seek(Number(range.value)));
    $("clip").addEventListener("change", (event) => showClip(Number(event.target.value)));
    $("speed").addEventListener("change", (event) => {
      state.speed = Number(event.target.value);
    });
    const setOverlay = (on) => {
      state.overlay = on;
      $("side").setAttribute("aria-pressed", String(!on));
      $("overlay").setAttribute("aria-pressed", String(on));
      captions.classList.toggle("overlay", on);
      redraw();
    };
    $("side").addEventListener("click", () => setOverlay(false));
    $("overlay").addEventListener("click", () => setOverlay(true));
    for (const name of ["truth", "samples", "trail", "contacts", "follow"]) $(name).addEventListener("change", redraw);

    const zoomBy = (factor) => {
      state.zoom = clamp(state.zoom * factor, 0.4, 4);
      redraw();
    };
    const orbit = (turn, tilt) => {
      state.turn += turn;
      state.elevation = clamp(state.elevation + tilt, 0.02, 1.45);
      redraw();
    };
    const resetView = () => {
      Object.assign(state, home, { turn: 0 });
      redraw();
    };
    $("nearer").addEventListener("click", () => zoomBy(1.2));
    $("farther").addEventListener("click", () => zoomBy(1 / 1.2));
    $("reset").addEventListener("click", resetView);

    const pointers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const now = [event.clientX, event.clientY];
      if (pointers.size === 2) {
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const was = Math.hypot(before[0] - other[0], before[1] - other[1]);
        const is = Math.hypot(now[0] - other[0], now[1] - other[1]);
        if (was > 5) zoomBy(is / was);
      } else {
        orbit(-0.009 * (now[0] - before[0]), 0.007 * (now[1] - before[1]));
      }
      pointers.set(event.pointerId, now);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
    canvas.addEventListener(
      "wheel",
      (event) => {
        // plain wheel scrolls the page until the picture was clicked; a pinch on a touchpad arrives as ctrl + wheel
        if (!event.ctrlKey && document.activeElement !== canvas) return;
        event.preventDefault();
        zoomBy(Math.exp(-clamp(event.deltaY, -60, 60) * 0.004));
      },
      { passive: false },
    );

    const errors = $("errors");
    const seekAt = (event) => {
      const box = errors.getBoundingClientRect();
      seek(Math.round(((event.clientX - box.left) / box.width) * (clip().frames - 1)));
    };
    errors.addEventListener("pointerdown", (event) => {
      errors.setPointerCapture(event.pointerId);
      seekAt(event);
    });
    errors.addEventListener("pointermove", (event) => {
      if (event.buttons) seekAt(event);
    });

    root.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const on = event.target;
      if (on.tagName === "SELECT") return;
      const isRange = on === range;
      const isButton = on.tagName === "BUTTON" || on.type === "checkbox";
      const step = event.shiftKey ? 10 : 1;
      const actions = {
        ArrowRight: isRange && step === 1 ? null : () => seek(frameNow() + step),
        ArrowLeft: isRange && step === 1 ? null : () => seek(frameNow() - step),
        Home: isRange ? null : () => seek(0),
        End: isRange ? null : () => seek(clip().frames - 1),
        " ": isButton ? null : () => play(!state.playing),
        a: () => orbit(-0.12, 0), d: () => orbit(0.12, 0), w: () => orbit(0, 0.08), s: () => orbit(0, -0.08),
        "+": () => zoomBy(1.15), "=": () => zoomBy(1.15), "-": () => zoomBy(1 / 1.15),
        o: () => setOverlay(!state.overlay), r: resetView,
      };
      const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (action) {
        event.preventDefault();
        action();
      }
    });

    darkScheme.addEventListener("change", () => {
      palette = readPalette();
      redraw();
    });
    new ResizeObserver(redraw).observe(canvas);
    let met = false;
    new IntersectionObserver(
      (entries) => {
        const last = entries[entries.length - 1];
        state.visible = last.isIntersecting;
        if (last.intersectionRatio >= 0.6 && !met) {
          met = true;
          if (!reducedMotion.matches && state.time === 0 && root.dataset.autoplay !== "off") play(true);
        }
      },
      { threshold: [0, 0.6] },
    ).observe(canvas);

    showClip(0);
    root.dataset.ready = "true";
  }

  // ---- charts --------------------------------------------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  function makeReadout(svg) {
    const chart = JSON.parse(svg.dataset.chart);
    const hover = svg.querySelector(".hover");
    const [left, top, , height] = chart.plot;
    let index = -1;
    const main = chart.series.reduce((best, s) => (s.px.length > best.px.length ? s : best), chart.series[0]);

    const nearest = (series, x) => {
      let best = -1, gap = Infinity;
      series.px.forEach((px, i) => {
        if (px !== null && series.py[i] !== null && Math.abs(px - x) < gap) {
          gap = Math.abs(px - x);
          best = i;
        }
      });
      return best;
    };

    function hide() {
      hover.textContent = "";
      tip.hidden = true;
      index = -1;
    }

    function show(at) {
      index = at;
      const x = main.px[at];
      hover.textContent = "";
      const hair = document.createElementNS(SVG, "line");
      hair.setAttribute("class", "hair");
      for (const [name, value] of [["x1", x], ["x2", x], ["y1", top], ["y2", top + height]]) hair.setAttribute(name, value);
      hover.append(hair);
      tip.textContent = "";
      const head = document.createElement("b");
      head.textContent = `${chart.xLabel} ${main.x[at]}`;
      tip.append(head);
      for (const series of chart.series) {
        const i = nearest(series, x);
        if (i < 0) continue;
        const dot = document.createElementNS(SVG, "circle");
        dot.setAttribute("class", `c-${series.color}`);
        for (const [name, value] of [["cx", series.px[i]], ["cy", series.py[i]], ["r", 4]]) dot.setAttribute(name, value);
        hover.append(dot);
        const row = document.createElement("span");
        const name = document.createElement("i");
        name.textContent = series.label;
        name.style.fontStyle = "normal";
        const value = document.createElement("strong");
        value.textContent = series.y[i];
        row.append(name, value);
        tip.append(row);
      }
      tip.hidden = false;
      const box = svg.getBoundingClientRect();
      const px = box.left + (x / chart.size[0]) * box.width;
      const size = tip.getBoundingClientRect();
      tip.style.left = `${clamp(px + 14 + size.width > innerWidth ? px - size.width - 14 : px + 14, 4, innerWidth - size.width - 4)}px`;
      tip.style.top = `${clamp(box.top + 8, 4, innerHeight - size.height - 4)}px`;
    }

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = nearest(main, ((event.clientX - box.left) / box.width) * chart.size[0]);
      if (at >= 0) show(at);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!move) return;
      event.preventDefault();
      let next = index < 0 ? (move > 0 ? 0 : main.px.length - 1) : index + move * (event.shiftKey ? 10 : 1);
      next = clamp(next, 0, main.px.length - 1);
      while (next > 0 && next < main.px.length - 1 && main.py[next] === null) next += move;
      if (main.py[next] !== null) show(next);
    });
  }

  // ---- page ----------------------------------------------------------------------------------------------------------------------

  const root = document.getElementById("player");
  if (root) makePlayer(root, JSON.parse(document.getElementById("motion-data").textContent));
  document.querySelectorAll("svg[data-chart]").forEach(makeReadout);

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
        setTimeout(() => {
          button.textContent = "Copy";
        }, 1600);
      } catch {
        getSelection().selectAllChildren(source);
      }
    });
  }

  const links = new Map([...document.querySelectorAll(".sections a")].map((link) => [link.hash.slice(1), link]));
  const inView = new Set();
  const sections = [...document.querySelectorAll("main > section[id]")];
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) inView.add(entry.target.id);
        else inView.delete(entry.target.id);
      }
      const current = sections.find((section) => inView.has(section.id));
      for (const [id, link] of links) {
        if (current && current.id === id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    },
    { rootMargin: "-20% 0px -60% 0px" },
  );
  for (const section of sections) watcher.observe(section);

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
