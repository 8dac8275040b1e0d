"use strict";
/* The panel beside the text, which says all about one token. */
const tokenPanel = (data) => {
  const { fixed, signed, probability, whole, counted, visible, hex } = tokenData;
  const panel = document.getElementById("token-panel");
  const make = (kind, parent, text = "", className = "") => {
    const made = document.createElement(kind);
    made.textContent = text;
    if (className) made.className = className;
    parent.append(made);
    return made;
  };
  const quoted = (text) => typeof text === "number" ? `#${text}` : `“${visible(text).replaceAll(" ", "·")}”`;

  /* The token as text; where it has none, what it is. */
  const name = (i) => {
    const text = data.text(i);
    if (text) return quoted(text);
    return data.length[i] ? "part of a character" : "no text";
  };

  const title = make("p", panel, "", "token-title");
  const remark = make("p", panel, "", "token-remark");
  const list = make("dl", panel);
  const rows = {};
  const row = (key, label) => {
    const line = make("div", list);
    make("dt", line, label);
    rows[key] = [line, make("data", make("dd", line))];
  };
  row("p", "Probability");
  row("nats", "Loss");
  row("bits", "in bits");
  row("rank", "Rank");
  row("entropy", "Entropy");
  row("confidence", "Confidence");
  row("change", "Against the other run");
  row("bytes", "Bytes");
  row("context", "Context");
  row("document", "Document");
  const likeliest = make("h3", panel, "Likeliest here");
  const bars = make("ol", panel);
  const link = make("a", panel, "Link to this token");

  const set = (key, text, value = "") => {
    const [line, cell] = rows[key];
    line.hidden = text === "";
    cell.textContent = text;
    cell.value = String(value);
    cell.dataset.token = key;
  };

  /* What a person should know about a token besides its numbers. */
  const remarks = (i) => {
    const said = [];
    const reason = data.reason[i] >= 0 ? data.reasons[data.reason[i]] : "";
    if (!data.isScored(i)) said.push(`Not scored: ${reason || "unknown why"}.`);
    else if (reason) said.push(`Scored, but left out of metrics per byte: ${reason}.`);
    const [start, end] = [data.offsets[i], data.offsets[i + 1]];
    if (start === end) said.push("It covers no byte of the text.");
    else if (!data.text(i)) said.push("Its bytes are the rest of a character that an earlier token begins.");
    else if (data.edges[i] !== start || data.edges[i + 1] !== end) {
      said.push("It ends or begins inside a character, which is shown on the token with its first byte.");
    }
    return said.join(" ");
  };

  const showChange = (i) => {
    if (!data.segment || data.segment[i] < 0) return set("change", "");
    let [first, stop] = [i, i + 1];
    while (first > 0 && data.segment[first - 1] === data.segment[i]) first--;
    while (stop < data.n && data.segment[stop] === data.segment[i]) stop++;
    const over = stop - first > 1 ? `, over the ${whole(stop - first)} tokens from ${name(first)} to ${name(stop - 1)}` : "";
    const text = `${signed(data.change(i))} nats (${fixed(data.nats_a[i])} → ${fixed(data.nats_b[i])})${over}`;
    set("change", text, data.change(i));
  };

  const bar = (text, p, isToken) => {
    const line = make("li", bars, "", isToken ? "token-right" : "");
    make("span", line, text, "token-name");
    make("data", line, probability(p)).value = String(p);
    make("span", make("span", line, "", "token-bar"), "").style.width = `${100 * p}%`;
    if (isToken) make("span", line, " (this token)", "unseen");
  };

  const showBars = (i, p) => {
    bars.replaceChildren();
    let found = false;
    for (let j = i * data.k; j < (i + 1) * data.k; j++) {
      if (data.top[j] < 0) continue;
      const isToken = j - i * data.k === data.own[i];
      found ||= isToken;
      const text = data.texts[data.top[j]];
      bar(isToken && typeof text === "number" ? name(i) : quoted(text), Math.exp(data.top_logprobs[j]), isToken);
    }
    if (!found && data.isScored(i)) bar(name(i), p, true);
    likeliest.hidden = bars.hidden = !bars.childElementCount;
  };

  const show = (i) => {
    const [nats, p] = [data.nll[i], Math.exp(-data.nll[i])];
    const scored = data.isScored(i);
    panel.dataset.token = String(i);
    title.textContent = name(i);
    remark.textContent = remarks(i);
    set("p", scored ? probability(p) : "", p);
    set("nats", scored ? `${fixed(nats)} nats` : "", nats);
    set("bits", scored ? `${fixed(nats / Math.LN2)} bits` : "", nats / Math.LN2);
    set("rank", scored ? whole(data.rank[i]) : "", data.rank[i]);
    set("entropy", scored ? `${fixed(data.entropy[i])} nats` : "", data.entropy[i]);
    set("confidence", scored ? probability(data.confidence[i]) : "", data.confidence[i]);
    showChange(i);
    set("bytes", hex(data, i) || "none", hex(data, i));
    set("context", scored ? `${counted(data.context[i], "token")} before it` : "", data.context[i]);
    set("document", visible(data.documents[data.document[i]]), data.documents[data.document[i]]);
    showBars(i, p);
    link.href = `#token-${i + 1}`;
  };

  /* One sentence about a token, for a screen reader. */
  const sentence = (i) => {
    if (!data.isScored(i)) return `${name(i)}. ${remarks(i)}`;
    const best = data.top[i * data.k];
    const other = data.rank[i] > 1 && best >= 0 ? ` Likeliest: ${quoted(data.texts[best])}.` : "";
    const rank = `rank ${whole(data.rank[i])}`;
    return `${name(i)}: ${probability(Math.exp(-data.nll[i]))}, ${data.nll[i].toFixed(2)} nats, ${rank}.${other} ${remarks(i)}`;
  };

  return { show, sentence };
};
