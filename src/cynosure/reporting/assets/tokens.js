"use strict";
/* The view of the text: colours, keys, search, and what leads to the panel. */
(() => {
  const element = (id) => document.getElementById(id);
  const packed = element("token-data");
  if (!packed || !element("token-view")) return;

  const { signed, whole } = tokenData;
  const MISTAKES = 1000; // that n and p visit
  const PRINTED = 6000; // tokens, about twelve pages

  // Each has nine tints, between eight edges; a value at an edge belongs to the lower one.
  const MODES = {
    nll: { label: "Loss", unit: "nats", edges: [0.1, 0.7, 1.4, 2.3, 3, 4.6, 6.9, 9.2], kind: "s" },
    rank: { label: "Rank", unit: "rank", edges: [1, 2, 5, 10, 50, 100, 1000, 10000], kind: "s" },
    entropy: { label: "Entropy", unit: "nats", edges: [0.1, 0.5, 1, 1.5, 2, 3, 4, 5], kind: "s" },
    confidence: { label: "Confidence", unit: "probability", edges: [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 0.99], kind: "s" },
    change: { label: "Change", unit: "nats", edges: [-4, -2, -1, -0.25, 0.25, 1, 2, 4], kind: "d" },
  };
  const MEANINGS = {
    nll: "Loss in nats: the stronger the colour, the less the model expected the token.",
    rank: "Place of the token among all that the model could have chosen.",
    entropy: "Entropy in nats: how open the model took the choice to be.",
    confidence: "Probability of the likeliest token, right or wrong.",
    change: "Loss minus that of the other run, in nats: orange is worse here, blue is better.",
  };

  const begin = (data) => {
    let mode = data.segment ? "change" : "nll";
    const value = (i, name = mode) => name === "change" ? (data.segment[i] < 0 ? NaN : data.change(i)) : data[name][i];
    const tint = (i) => {
      const { edges, kind } = MODES[mode];
      const x = value(i);
      return Number.isNaN(x) ? "" : `${kind}${edges.filter((edge) => x > edge).length}`;
    };
    const options = { marked: false, tint, hits: new Uint32Array(data.n), hit: 0 };
    const text = tokenText(data, options);
    const panel = tokenPanel(data);

    const go = (i, focus = true) => {
      const span = text.choose(i);
      text.reveal(i);
      element("token-layout").scrollIntoView({ block: "nearest" });
      if (focus) span.focus({ preventScroll: true });
      panel.show(i);
      selectDocument(i);
      element("token-spoken").textContent = panel.sentence(i);
    };

    legendAndModes(data, mode, (name) => {
      mode = name;
      mistakes.begin();
      text.refresh();
    });
    const mistakes = mistakesOf(data, () => mode, value, go);
    mistakes.begin();
    searching(data, options, text, go);
    const selectDocument = documents(data, go);
    pointing(text, panel, go);
    walking(data, text, mistakes, go);
    printing(data, text);
    element("token-spaces").addEventListener("change", (event) => {
      options.marked = event.target.checked;
      text.box.classList.toggle("token-marked", options.marked);
      text.refresh(true);
    });

    element("token-status").hidden = true;
    element("token-view").hidden = false;
    text.start();
    panel.show(0);
    const follow = () => {
      const place = /^#token-(\d+)$/.exec(location.hash);
      if (!place || !(place[1] >= 1 && place[1] <= data.n)) return;
      element("tokens").scrollIntoView();
      go(place[1] - 1);
    };
    addEventListener("hashchange", follow);
    follow();
  };

  const legendAndModes = (data, first, change) => {
    const legend = (name) => {
      const { edges, kind, unit } = MODES[name];
      const place = element("token-legend");
      const show = name === "confidence" ? (x) => `${Math.round(100 * x)}%` : name === "change" ? (x) => signed(x).replace(/\.?0+$/, "") : whole;
      const labels = name === "rank"
        ? [1, 2, ...edges.slice(2).map((edge, j) => `${whole(edges[j + 1] + 1)}–${whole(edge)}`), `over ${whole(edges.at(-1))}`]
        : [`to ${show(edges[0])}`, ...edges.slice(1).map((edge) => `to ${show(edge)}`), `over ${show(edges.at(-1))}`];
      const meaning = document.createElement("p");
      meaning.textContent = MEANINGS[name];
      const scale = document.createElement("ul");
      scale.setAttribute("aria-label", unit);
      labels.forEach((label, j) => {
        const swatch = document.createElement("li");
        swatch.className = `${kind}${j}`;
        swatch.textContent = label;
        scale.append(swatch);
      });
      place.replaceChildren(meaning, scale);
    };
    for (const [name, { label }] of Object.entries(MODES)) {
      if (name === "change" && !data.segment) continue;
      const [choice, radio] = [document.createElement("label"), document.createElement("input")];
      Object.assign(radio, { type: "radio", name: "token-mode", value: name, checked: name === first });
      radio.addEventListener("change", () => {
        legend(name);
        change(name);
      });
      choice.append(radio, ` ${label}`);
      element("token-modes").append(choice);
    }
    legend(first);
  };

  /* The tokens that n and p visit, the worst first: by the change if that is shown, else by the loss. */
  const mistakesOf = (data, mode, value, go) => {
    let [order, at] = [null, -1];
    const sorted = () => {
      const name = mode() === "change" ? "change" : "nll";
      const chosen = [];
      for (let i = 0; i < data.n; i++) {
        const isNew = name === "nll" ? data.rank[i] > 1 : !i || data.segment[i] !== data.segment[i - 1];
        if (isNew && value(i, name) > 0) chosen.push(i);
      }
      return chosen.sort((i, j) => value(j, name) - value(i, name) || i - j).slice(0, MISTAKES);
    };
    const step = (by, focus = true) => {
      order ??= sorted();
      if (!order.length) return;
      at = Math.min(order.length - 1, Math.max(0, at + by));
      element("token-mistake").textContent = `${mode() === "change" ? "Increase" : "Mistake"} ${whole(at + 1)} of ${whole(order.length)}`;
      go(order[at], focus);
    };
    const begin = () => {
      [order, at] = [null, -1];
      element("token-mistake").textContent = mode() === "change" ? "Largest increases" : "Worst mistakes";
    };
    element("token-next").addEventListener("click", () => step(1, false));
    element("token-back").addEventListener("click", () => step(-1, false));
    return { step, begin };
  };

  const searching = (data, options, text, go) => {
    const [field, output] = [element("token-search"), element("token-hits")];
    let [hits, sought, at] = [[], "", -1]; // hits: [first token, last token]
    const joined = () => {
      const starts = new Uint32Array(data.n + 1);
      const parts = [];
      for (let i = 0; i < data.n; i++) {
        parts.push(data.text(i));
        starts[i + 1] = starts[i] + parts[i].length;
      }
      return [parts.join(""), starts];
    };
    let everything = null;
    const find = () => {
      [hits, sought, at] = [[], field.value, -1];
      options.hits.fill(0);
      if (!sought) return;
      const [all, starts] = (everything ??= joined());
      const pattern = new RegExp(sought.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"), "giu");
      let i = 0;
      for (const match of all.matchAll(pattern)) {
        while (starts[i + 1] <= match.index) i++;
        let last = i;
        while (starts[last + 1] < match.index + match[0].length) last++;
        hits.push([i, last]);
        for (let j = i; j <= last; j++) options.hits[j] = hits.length;
      }
    };
    const say = () => {
      output.textContent = !sought ? "" : !hits.length ? "not found" : at < 0 ? `${whole(hits.length)} found` : `${whole(at + 1)} of ${whole(hits.length)}`;
    };
    field.addEventListener("input", () => {
      find();
      options.hit = 0;
      say();
      text.refresh();
    });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      if (!hits.length) return;
      at = (at + (event.shiftKey ? -1 : 1) + hits.length + (at < 0 && event.shiftKey ? 1 : 0)) % hits.length;
      options.hit = at + 1;
      say();
      text.refresh();
      go(hits[at][0], false);
    });
  };

  const documents = (data, go) => {
    const select = element("token-document");
    const firsts = new Map();
    for (const first of data.stretches.keys()) {
      if (firsts.has(data.document[first])) continue;
      firsts.set(data.document[first], String(first));
      select.add(new Option(tokenData.visible(data.documents[data.document[first]]), String(first)));
    }
    element("token-jump").hidden = select.options.length < 2;
    select.addEventListener("change", () => go(Number(select.value), false));
    return (i) => {
      select.value = firsts.get(data.document[i]);
    };
  };

  const pointing = (text, panel, go) => {
    const { box } = text;
    box.addEventListener("pointermove", (event) => {
      const i = event.pointerType === "touch" ? -1 : text.tokenOf(event.target);
      if (i >= 0) panel.show(i);
    });
    box.addEventListener("pointerleave", () => panel.show(text.current()));
    box.addEventListener("click", (event) => {
      const i = text.tokenOf(event.target);
      if (i >= 0) go(i);
    });
    box.addEventListener("focusin", (event) => {
      const i = text.tokenOf(event.target);
      if (i >= 0 && i !== text.current()) go(i, false);
      else if (i >= 0) panel.show(i);
    });
  };

  const walking = (data, text, mistakes, go) => {
    const moves = {
      ArrowLeft: (i) => Math.max(0, i - 1),
      ArrowRight: (i) => Math.min(data.n - 1, i + 1),
      ArrowUp: (i) => text.across(i, -1),
      ArrowDown: (i) => text.across(i, 1),
      Home: () => 0,
      End: () => data.n - 1,
    };
    text.box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in moves)) return;
      event.preventDefault();
      go(moves[event.key](text.current()));
    });
    element("tokens").addEventListener("keydown", (event) => {
      const isTyping = event.target.matches("input[type=search], select");
      if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !["n", "p"].includes(event.key)) return;
      event.preventDefault();
      mistakes.step(event.key === "n" ? 1 : -1);
    });
  };

  const printing = (data, text) => {
    addEventListener("beforeprint", () => {
      const [first, stop] = text.forPrint(PRINTED);
      element("token-printed").textContent = `Printed: tokens ${whole(first + 1)} to ${whole(stop)} of ${whole(data.n)}.`;
    });
    addEventListener("afterprint", () => text.afterPrint());
  };

  tokenData.read(packed.textContent).then((data) => {
    if (data.n) begin(data);
    else element("token-status").textContent = "There are no tokens to show.";
  }).catch((error) => {
    element("token-status").textContent = `The tokens cannot be shown here: ${error.message}`;
  });
})();
