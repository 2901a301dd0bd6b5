// Players. What plays a file is [name, address, start, end, fault]; what is judged lies between start and end.

function hrefOf([, address, start, end]) {
  return address + (start || end !== null ? `#t=${start}${end === null ? "" : `,${end}`}` : "");
}

// A link to what plays a file; of an embedding that was given without one, its name.
function linkTo(source) {
  return source[1] ? element("a", { href: hrefOf(source) }, source[0]) : element("span", {}, source[0]);
}

function sayFault(media, [name, address, , , fault]) {
  const format = address.split(".").at(-1).toUpperCase();
  const words = address ? texts.unplayable : texts["no file"];
  const text = fill(words, { file: name, format }) + (fault ? ` (${fault})` : "");
  media.after(element("p", { class: "fault", role: "alert" }, text));
  media.hidden = true;
  if (media.choices) media.choices.hidden = true;
}

function playerOf(tag, source, label) {
  const media = element(tag, { controls: "", preload: "metadata", "aria-label": label, src: hrefOf(source) });
  media.start = source[2];
  media.addEventListener("error", () => sayFault(media, source), { once: true });
  if (tag === "video") {
    media.setAttribute("playsinline", "");
    media.addEventListener("loadedmetadata", () => { if (!media.videoWidth) sayFault(media, source); });
  }
  return media;
}

// The video plays with the judged sound, or with its own.
function pairPlayer(videoNumber, audioNumber) {
  const video = page.players[videoNumber], audio = page.players[audioNumber];
  const box = element("div", { class: "player" });
  const picture = playerOf("video", video, `${texts.video}: ${video[0]}`);
  box.append(element("h3", {}, `${texts.video}: `, linkTo(video)), picture);
  if (!audio) return [box, picture];
  const sound = playerOf("audio", audio, `${texts.audio}: ${audio[0]}`);
  const group = `sound${++pairPlayer.n}`;
  let judged = true;
  [picture.partner, sound.partner] = [sound, picture];
  const follow = tolerance => {
    const at = Math.max(picture.currentTime - video[2] + audio[2], 0);
    if (Math.abs(sound.currentTime - at) > tolerance) sound.currentTime = at;  // seeking takes time: only if need be
    if (!picture.paused && sound.paused && at < sound.duration) sound.play().catch(() => {});
  };
  const choose = isJudged => {
    judged = picture.muted = isJudged;
    inputs[isJudged ? 0 : 1].checked = true;
    if (isJudged) follow(0.02); else sound.pause();
  };
  const inputs = [];
  const choices = [[texts["judged sound"], true], [texts["own sound"], false]].map(([label, isJudged]) => {
    const input = element("input", { type: "radio", name: group });
    inputs.push(input);
    input.addEventListener("change", () => choose(isJudged));
    return element("label", {}, input, " ", label);
  });
  for (const [event, tolerance] of [["play", 0.02], ["seeking", 0.02], ["timeupdate", 0.08]])
    picture.addEventListener(event, () => { if (judged) follow(tolerance); });
  for (const event of ["pause", "ended"]) picture.addEventListener(event, () => { if (judged) sound.pause(); });
  picture.addEventListener("ratechange", () => { sound.playbackRate = picture.playbackRate; });
  picture.addEventListener("volumechange", () => { if (judged !== picture.muted) choose(picture.muted); });
  choose(true);
  picture.choices = element("fieldset", { "aria-label": texts["plays with"] }, `${texts["plays with"]}: `, ...choices);
  box.append(picture.choices,
    element("h3", {}, `${texts.audio}: `, linkTo(audio)), sound);
  return [box, picture];
}
pairPlayer.n = 0;

// Play from some seconds after the start of what is judged; a video that cannot be played, its sound alone.
function jump(picture, seconds) {
  const go = media => {
    media.currentTime = Math.max(media.start + seconds, 0);
    media.play().catch(() => {});
  };
  if (picture.hidden) return picture.partner && go(picture.partner);
  if (picture.readyState) return go(picture);
  picture.addEventListener("loadedmetadata", () => go(picture), { once: true });
  picture.addEventListener("error", () => picture.partner && go(picture.partner), { once: true });
}

// One pair sounds at a time.
document.addEventListener("play", ({ target }) => {
  for (const media of document.querySelectorAll("video, audio"))
    if (media !== target && media !== target.partner) media.pause();
}, true);

function sayWindow([start, end, score, isSilent]) {
  return fill(texts.window, { start, end, score: number(score) }) + (isSilent ? ` (${texts.silent})` : "");
}

function windowButtons([weakest, windows], picture) {
  const lowest = windows.findIndex(of => of[2] === weakest), buttons = windows.map((of, i) => {
    const isWeakest = i === lowest;
    const button = element("button", { type: "button", class: isWeakest ? "weakest" : "" },
      isWeakest ? `${texts.weakest} ` : "", sayWindow(of));
    button.addEventListener("click", () => jump(picture, of[0]));
    return button;
  });
  const [first] = buttons.splice(lowest, 1), list = element("div", { class: "window-list" }, ...buttons);
  const folded = element("details", {}, element("summary", {}, texts["other windows"]), list);
  return element("div", {}, element("h3", {}, texts["over time"]),
    element("div", { class: "window-list" }, first), buttons.length ? folded : "");
}

// "This audio fits X better", with a player that is made when it is asked for.
function otherMatch([modality, name, similarity, source], own, ownSimilarity) {
  const words = texts[`${similarity > ownSimilarity ? "better" : "next"} ${modality}`];
  const button = element("button", { type: "button" }, texts.play), box = element("div", {},
    element("p", {}, fill(words, { name, similarity: number(similarity) }), " ", button));
  button.addEventListener("click", () => {
    const [video, audio] = modality === "video" ? [source, own.audio ?? own.video] : [own.video, source];
    const [player, picture] = pairPlayer(video, audio);
    button.replaceWith(player);
    jump(picture, 0);
  });
  return box;
}

// What is shown of a pair when its row is opened.
function openedPair(part, row, detail) {
  const box = element("div", { class: "opened-pair" });
  const [player, picture] = pairPlayer(detail.video, detail.audio);
  box.append(player);
  if (detail.other) {
    const [otherPlayer] = pairPlayer(detail.other.video, detail.other.audio);
    player.prepend(element("h3", {}, detail.title));
    otherPlayer.prepend(element("h3", {}, detail.other.title));
    box.append(otherPlayer);
  }
  const values = element("dl", { class: "values" });
  part.columns.forEach(([label, kind], i) => {
    if (["thumbnails", "windows"].includes(kind) || row[i] === null) return;
    values.append(element("dt", {}, label), element("dd", {}, say(row[i], kind)));
  });
  const equal = part.rows.filter(of => of[0] === row[0]), n = equal.length > 1 ? `&n=${equal.indexOf(row) + 1}` : "";
  const address = `#pair=${encodeURIComponent(row[0])}${n}${part.link || ""}`;
  box.append(element("div", {}, values, element("p", {}, element("a", { href: address }, texts["link to pair"]))));
  const windows = part.columns.findIndex(([, kind]) => kind === "windows"), side = element("div", {});
  if (windows >= 0 && row[windows]) side.append(windowButtons(row[windows], picture));
  const similarity = row[part.columns.findIndex(([, kind]) => kind === "number")];
  if (detail.others?.length)
    side.append(element("h3", {}, texts["other matches"]),
      ...detail.others.map(other => otherMatch(other, detail, similarity)));
  if (side.children.length) box.append(side);
  return [box, picture];
}
