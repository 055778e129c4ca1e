// The page asks the JSON API for one upload at a time, a few at once; the server joins them into batches.

const { words, model } = JSON.parse(document.getElementById("facts").textContent);
const language = document.documentElement.lang;
const form = document.getElementById("ask");
const answers = document.getElementById("answers");
const said = document.getElementById("said");
const AT_ONCE = 4;
const MAX_REPEATS = 5;

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const percent = new Intl.NumberFormat(language, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const decimal = new Intl.NumberFormat(language, { maximumSignificantDigits: 5 });
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// ---------------------------------------------------------------------- asking

const waiting = [];
let running = 0;

function enqueue(task) {
  waiting.push(task);
  advance();
}

async function advance() {
  if (running >= AT_ONCE || !waiting.length) return;
  running += 1;
  try {
    await waiting.shift()();
  } finally {
    running -= 1;
    advance();
  }
}

async function ask(upload, query = "") {
  for (let repeat = 0; ; repeat += 1) {
    const response = await fetch(`/api/predict${query}`, request(upload));
    if (response.status === 503 && repeat < MAX_REPEATS) {
      await pause(Number(response.headers.get("Retry-After") || 1) * (1 + Math.random()));
      continue;
    }
    const body = await response.json();
    const failed = body.error ?? body.answers[0].error;
    if (failed) throw failed;
    return body.answers[0];
  }
}

function request(upload) {
  if (typeof upload === "string") {
    return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ texts: [upload] }) };
  }
  const body = new FormData();
  body.append("file", upload, upload.name);
  return { method: "POST", body };
}

// ---------------------------------------------------------------------- showing

function add(upload) {
  const card = document.getElementById("card").content.firstElementChild.cloneNode(true);
  const name = typeof upload === "string" ? words.text_label : upload.name || words.answers;
  const find = (selector) => card.querySelector(selector);
  find("h3").textContent = name;
  find(".remove").setAttribute("aria-label", fill(words.remove_of, { name }));
  find(".remove").title = words.remove;
  find(".remove").addEventListener("click", () => remove(card));
  find("figure").append(preview(upload, name));
  answers.prepend(card);
  update();
  answer(card, upload, name);
}

function answer(card, upload, name) {
  setAnswer(card, words.working, "faint");
  card.querySelector(".more").replaceChildren();
  enqueue(async () => {
    if (!card.isConnected) return;
    try {
      show(card, await ask(upload), upload, name);
    } catch (error) {
      setAnswer(card, message(error), "error");
      said.textContent = fill(words.answer_of, { name, answer: message(error) });
      if (!error.code || error.code === "busy" || error.code === "failed") {
        addButton(card, words.again, () => answer(card, upload, name));
      }
    }
  });
}

function show(card, found, upload, name) {
  const rows = card.querySelector(".classes");
  if (found.values) {
    const values = Object.entries(found.values);
    const shown = values.length === 1 ? decimal.format(values[0][1]) : "";
    setAnswer(card, shown);
    if (values.length > 1) rows.replaceChildren(...values.map(([label, value]) => row(label, null, decimal.format(value))));
    said.textContent = fill(words.answer_of, { name, answer: values.map(([label, value]) => `${label} ${decimal.format(value)}`).join(", ") });
    return;
  }
  const labels = model.task === "multilabel" ? found.classes.map((each) => each.name).join(", ") : found.answer;
  const text = found.rejected ? words.unknown : labels || words.none;
  setAnswer(card, text, found.rejected || !labels ? "faint" : "");
  rows.replaceChildren(...found.classes.map((each) => row(each.name, each.probability, percent.format(each.probability))));
  if (!found.rejected && found.classes.length) about(card, found.classes[0]);
  if (model.heatmaps) addLook(card, upload, name);
  said.textContent = fill(words.answer_of, { name, answer: text });
}

function row(name, share, number) {
  const item = document.createElement("li");
  const label = element("span", name);
  const bar = element("span", "", "bar");
  bar.setAttribute("aria-hidden", "true");
  if (share !== null) {
    const filled = document.createElement("i");
    filled.style.width = `${100 * share}%`;
    bar.append(filled);
  } else {
    bar.className = "";
  }
  item.append(label, bar, element("span", number, "number"));
  return item;
}

function about(card, best) {
  const place = card.querySelector(".about");
  place.replaceChildren();
  if (best.text) place.append(`${best.text} `);
  if (best.link) {
    const link = element("a", words.read_on);
    Object.assign(link, { href: best.link, rel: "noopener noreferrer", target: "_blank" });
    place.append(link);
  }
}

// A button that shows where the model looked, and the picture again.
function addLook(card, upload, name) {
  const button = addButton(card, words.looked, async () => {
    const shown = card.querySelector("figure img");
    if (!shown) return;
    const pressed = button.getAttribute("aria-pressed") === "true";
    if (!pressed && !shown.dataset.heatmap) {
      button.disabled = true;
      try {
        shown.dataset.heatmap = (await ask(upload, "?heatmap=1")).heatmap;
        shown.dataset.picture = shown.src;
      } catch (error) {
        said.textContent = message(error);
        return;
      } finally {
        button.disabled = false;
        button.focus();
      }
    }
    shown.src = pressed ? shown.dataset.picture : shown.dataset.heatmap;
    shown.alt = pressed ? name : fill(words.looked_of, { name });
    button.setAttribute("aria-pressed", String(!pressed));
  });
  button.setAttribute("aria-pressed", "false");
}

function preview(upload, name) {
  if (typeof upload === "string") return element("blockquote", upload);
  const url = URL.createObjectURL(upload);
  const shown = document.createElement(model.kind === "image" ? "img" : "audio");
  Object.assign(shown, model.kind === "image" ? { src: url, alt: name } : { src: url, controls: true, ariaLabel: name });
  shown.addEventListener("error", () => shown.remove()); // a format that this browser does not show
  return shown;
}

function setAnswer(card, text, kind = "") {
  const place = card.querySelector(".answer");
  place.textContent = text;
  place.className = `answer ${kind}`;
}

function message(error) {
  const { limits, kind } = model;
  const values = {
    megabytes: decimal.format(limits.file_bytes / 1e6),
    megapixels: decimal.format(limits.pixels / 1e6),
    characters: decimal.format(limits.characters),
  };
  if (!error.code) return words.offline;
  if (error.code === "too_large" && kind === "text") return fill(words.too_long, values);
  if (error.code === "not_readable") return words[`not_readable_${kind}`];
  return fill(words[error.code] ?? words.failed, values);
}

function remove(card) {
  card.querySelectorAll("img, audio").forEach((each) => URL.revokeObjectURL(each.dataset.picture ?? each.src));
  card.remove();
  update();
  answers.focus();
}

function update() {
  document.getElementById("empty").hidden = answers.children.length > 0;
  document.getElementById("clear").hidden = answers.children.length < 2;
}

function addButton(card, text, click) {
  const button = element("button", text);
  button.type = "button";
  button.addEventListener("click", click);
  card.querySelector(".more").append(button);
  return button;
}

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// ---------------------------------------------------------------------- input

const take = (files) => [...files].forEach(add);

if (model.kind === "text") {
  const field = document.getElementById("text");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) add(field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
} else {
  for (const input of form.querySelectorAll("input")) {
    input.addEventListener("change", () => {
      take(input.files);
      input.value = "";
    });
  }
  let depth = 0;
  const over = (change) => {
    depth = Math.max(0, depth + change);
    form.classList.toggle("over", depth > 0);
  };
  addEventListener("dragenter", () => over(1));
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    over(0);
    take(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => take(event.clipboardData.files));
}

document.getElementById("clear").addEventListener("click", () => {
  [...answers.children].forEach(remove);
});
