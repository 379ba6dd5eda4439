/* Videos of one clip and seed beside each other: one clock, one slider. */
const data = JSON.parse(document.getElementById("data")?.textContent ?? '{"scenes": []}');
const at = (id) => document.getElementById(id);
const make = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });
const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

const SHOWN_AT_FIRST = 3; // policies beside the source and the uncached output
const MOST_WORST = 30; // entries in the list
const MOST_NUDGE = 0.1; // by how much a video that lags is played faster
const TINTS = [[0, 0, 0, 90], [86, 180, 233, 120], [213, 94, 0, 130], [0, 0, 0, 0]];

const urls = new Map();
let scene = null;
let tracks = []; // those shown: {about, video, canvas, error}
let frame = 0;
let playing = false;
let turn = 0; // counts changes of what is shown, so that what was awaited for older ones is dropped
let wanted = new Set(); // labels, kept from one clip to the next

function address(index) {
  if (!urls.has(index)) {
    urls.set(index, URL.createObjectURL(new Blob([bytes(data.videos[index])], { type: "video/mp4" })));
  }
  return urls.get(index);
}

const last = () => scene.frames - 1;
const middle = (number) => (number + 0.5) / scene.fps;
const decibels = (value) => (value === null ? "" : value === "identical" ? value : `${value.toFixed(1)} dB`);
const badness = (value) => (typeof value === "number" ? value : Infinity);

function fill(select, values, chosen) {
  select.replaceChildren(...values.map((value) => Object.assign(make("option", value), { value })));
  select.value = values.includes(chosen) ? chosen : values[0];
}

function choose(setting, clip, seed) {
  const unique = (key, among) => [...new Set(among.map((each) => String(each[key])))];
  fill(at("setting"), unique("setting", data.scenes), setting);
  const ofSetting = data.scenes.filter((each) => each.setting === at("setting").value);
  fill(at("clip"), unique("clip", ofSetting), clip);
  const ofClip = ofSetting.filter((each) => each.clip === at("clip").value);
  fill(at("seed"), unique("seed", ofClip), String(seed));
  show(ofClip.find((each) => String(each.seed) === at("seed").value));
}

function show(next) {
  scene = next;
  at("prompt").textContent = scene.prompt ? `Prompt: ${scene.prompt}` : "";
  at("measured").textContent = scene.measured;
  at("slider").max = last();
  frame = Math.min(frame, last());
  at("choices").replaceChildren(...scene.tracks.map((about) => {
    const box = Object.assign(make("input"), { type: "checkbox", checked: wanted.has(about.label) });
    box.addEventListener("change", () => {
      wanted[box.checked ? "add" : "delete"](about.label);
      place();
    });
    const label = make("label");
    label.append(box, ` ${about.label}`);
    return label;
  }));
  place();
}

/* Put the wanted videos onto the page. Those that were there already stay. */
function place() {
  pause();
  turn += 1;
  const kept = new Map(tracks.map((track) => [track.about, track]));
  tracks = scene.tracks.filter((about) => wanted.has(about.label)).map((about) => kept.get(about) ?? load(about));
  at("tracks").replaceChildren(...tracks.map((track) => track.figure));
  at("basis").replaceChildren(...bases().map((text) => make("li", text)));
  seek(frame);
}

/* Where the roles that are drawn come from, and for which videos. */
function bases() {
  const labels = new Map();
  for (const { about } of tracks) {
    const basis = about.roles === null ? "not known" : data.roles[about.roles].basis;
    labels.set(basis, [...(labels.get(basis) ?? []), about.label]);
  }
  return [...labels].map(([basis, named]) => `${named.join(", ")}: ${basis}`);
}

function load(about) {
  const figure = make("figure");
  const caption = make("figcaption");
  const stage = make("div");
  const error = make("span");
  const canvas = make("canvas");
  const video = Object.assign(make("video"), {
    src: address(about.video), muted: true, playsInline: true, preload: "auto",
  });
  video.setAttribute("aria-label", about.label);
  stage.className = "stage";
  stage.append(video, canvas);
  caption.append(make("span", about.label), error);
  figure.append(caption, stage);
  return { about, figure, video, canvas, error };
}

function seek(number) {
  frame = Math.max(0, Math.min(last(), number));
  for (const { video } of tracks) video.currentTime = middle(frame);
  draw();
}

/* Everything that depends on the frame, but the videos themselves. */
function draw() {
  at("slider").value = frame;
  at("frame").textContent = `frame ${frame + 1} of ${scene.frames}`;
  for (const { about, error, canvas } of tracks) {
    error.textContent = about.psnr ? decibels(about.psnr[frame]) : "";
    paint(canvas, at("overlay").checked && about.roles !== null ? data.roles[about.roles] : null);
  }
}

function paint(canvas, roles) {
  canvas.hidden = roles === null;
  if (roles === null) return;
  roles.cells ??= bytes(roles.data);
  const { width, height } = roles;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const picture = new ImageData(width, height);
  const start = roles.latent[frame] * width * height;
  for (let cell = 0; cell < width * height; cell++) {
    picture.data.set(TINTS[roles.cells[start + cell]], 4 * cell);
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

const settled = (video) => (video.readyState >= 3 && !video.seeking ? null
  : new Promise((done) => {
    const look = () => (video.readyState >= 3 && !video.seeking || video.error) && done();
    for (const event of ["canplay", "seeked", "error"]) video.addEventListener(event, look);
  }));

async function play() {
  if (!tracks.length) return;
  playing = true;
  at("play").textContent = "Pause";
  if (frame === last()) seek(0);
  const mine = ++turn;
  await Promise.all(tracks.map(({ video }) => settled(video)));
  if (mine !== turn || !playing) return;
  for (const { video } of tracks) video.playbackRate = Number(at("speed").value);
  await Promise.allSettled(tracks.map(({ video }) => video.play()));
  if (mine === turn && playing) requestAnimationFrame(() => follow(mine));
}

/* The first video is the clock; the others are nudged, or put right where they are a frame off. */
function follow(mine) {
  if (mine !== turn || !playing) return;
  const [leader, ...others] = tracks.map((track) => track.video);
  if (leader.ended) {
    for (const { video } of tracks) video.pause();
    seek(0);
    play();
    return;
  }
  const speed = Number(at("speed").value);
  leader.playbackRate = speed;
  for (const video of others) {
    const lag = (leader.currentTime - video.currentTime) * scene.fps; // in frames
    if (Math.abs(lag) > 0.75) video.currentTime = leader.currentTime;
    video.playbackRate = speed * (1 + Math.max(-MOST_NUDGE, Math.min(MOST_NUDGE, lag)));
  }
  const now = Math.min(last(), Math.floor(leader.currentTime * scene.fps));
  if (now !== frame) {
    frame = now;
    draw();
  }
  requestAnimationFrame(() => follow(mine));
}

function pause() {
  const wasPlaying = playing;
  playing = false;
  turn += 1;
  at("play").textContent = "Play";
  for (const { video } of tracks) video.pause();
  if (wasPlaying) seek(frame); // all on the very same frame
}

const step = (by) => { pause(); seek(frame + by); };

/* Frames of what is shown, the worst first; one press goes to the one after the current. */
function nextWorst() {
  const errors = tracks.map(({ about }) => about.psnr).filter((psnr) => psnr);
  if (!errors.length) return;
  const worst = (number) => Math.min(...errors.map((psnr) => badness(psnr[number])));
  const order = [...Array(scene.frames).keys()].sort((a, b) => worst(a) - worst(b) || a - b);
  pause();
  seek(order[(order.indexOf(frame) + 1) % order.length]);
}

function worstOfAll() {
  const found = [];
  for (const each of data.scenes) {
    for (const about of each.tracks) {
      if (!about.psnr) continue;
      const least = Math.min(...about.psnr.map(badness));
      if (least < Infinity) found.push({ each, about, least, number: about.psnr.indexOf(least) });
    }
  }
  return found.sort((a, b) => a.least - b.least).slice(0, MOST_WORST);
}

function visit({ each, about, number }) {
  pause();
  for (const label of [...each.tracks.slice(0, 1).map((track) => track.label), about.label]) wanted.add(label);
  frame = number;
  choose(each.setting, each.clip, each.seed);
}

function begin() {
  const worst = worstOfAll();
  const [first] = worst.length ? worst : [{ each: data.scenes[0], about: data.scenes[0].tracks[0], number: 0 }];
  const fixed = first.each.tracks.filter((about) => about.kind !== "policy");
  const policies = first.each.tracks.filter((about) => about.kind === "policy");
  wanted = new Set([...fixed, ...policies.slice(0, SHOWN_AT_FIRST)].map((about) => about.label));
  at("viewer").hidden = false;
  visit(first);
  const several = new Set(data.scenes.map((each) => each.setting)).size > 1;
  at("worst").replaceChildren(...worst.map((entry) => {
    const { each, about, least, number } = entry;
    const where = `${several ? `${each.setting}, ` : ""}${each.clip}, seed ${each.seed}`;
    const button = make("button", `${decibels(least)}: ${about.label}, frame ${number + 1}; ${where}`);
    button.type = "button";
    button.addEventListener("click", () => { visit(entry); at("tracks").scrollIntoView({ block: "nearest" }); });
    const item = make("li");
    item.append(button);
    return item;
  }));

  for (const id of ["setting", "clip", "seed"]) {
    at(id).addEventListener("change", () => choose(at("setting").value, at("clip").value, at("seed").value));
  }
  at("play").addEventListener("click", () => (playing ? pause() : play()));
  at("back").addEventListener("click", () => step(-1));
  at("on").addEventListener("click", () => step(1));
  at("worse").addEventListener("click", nextWorst);
  at("slider").addEventListener("input", () => { pause(); seek(Number(at("slider").value)); });
  at("overlay").addEventListener("change", () => { at("legend").hidden = !at("overlay").checked; draw(); });
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    // What an element does with a key by itself comes first.
    if (target.closest("select")) return;
    if (target.closest("button, input[type=checkbox], summary") && key === " ") return;
    if (target.closest("input[type=range], .scroll") && /^(Arrow|Home|End)/.test(key)) return;
    const actions = {
      " ": () => (playing ? pause() : play()),
      ArrowLeft: () => step(-1), ArrowRight: () => step(1),
      Home: () => step(-last()), End: () => step(last()),
      w: nextWorst, o: () => at("overlay").click(),
    };
    if (actions[key]) { event.preventDefault(); actions[key](); }
  });
}

if (data.scenes.length) begin();
