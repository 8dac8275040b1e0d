"use strict";
/* The text of the tokens in a box that scrolls. Only the chunks near what is seen are in the document. */
const tokenText = (data, options) => {
  const box = document.getElementById("token-text");
  const [LEAST, MOST] = [120, 400]; // tokens of a chunk, which ends with a line if one ends in time
  const MARGIN = 900; // pixels above and below the box that are filled too
  const shown = new Map(); // chunk -> spans of its tokens
  let current = 0;

  /* Whether most letters are of a script that runs from right to left. Tokens are isolated, so the browser cannot tell. */
  const isRightToLeft = (text) => {
    const n = (pattern) => text.match(pattern)?.length ?? 0;
    return 2 * n(/[\p{Script=Arabic}\p{Script=Hebrew}\p{Script=Syriac}\p{Script=Thaana}]/gu) > n(/\p{Letter}/gu);
  };

  const endsLine = (i) => data.bytes.subarray(data.edges[i], data.edges[i + 1]).includes(10);
  const beginsWord = (i) => data.bytes[data.edges[i]] === 32;
  const chunks = [];
  for (let i = 0; i < data.n; ) {
    const first = i++;
    while (i < data.n && !data.stretches.has(i)) {
      const size = i - first;
      if (size >= LEAST && endsLine(i - 1)) break;
      if (size >= MOST && (beginsWord(i) || size >= 2 * MOST)) break;
      i++;
    }
    chunks.push({ first, stop: i, isCut: i < data.n && !data.stretches.has(i) && !endsLine(i - 1) });
  }
  for (const chunk of chunks) {
    chunk.element = document.createElement("div");
    chunk.element.className = chunk.isCut ? "token-chunk token-cut" : "token-chunk";
  }
  const chunkOf = (i) => {
    let [low, high] = [0, chunks.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (chunks[middle].first <= i) low = middle;
      else high = middle - 1;
    }
    return low;
  };

  const put = (span, i) => {
    const text = data.text(i);
    const parts = tokenData.pieces(text, options.marked, i + 1 < data.n && data.bytes[data.edges[i + 1]] === 10);
    if (parts.every(([, isMark]) => !isMark)) {
      span.textContent = parts.map(([part]) => part).join("");
    } else {
      span.replaceChildren(...parts.map(([part, isMark]) => {
        const piece = document.createElement("span");
        if (isMark) piece.className = "token-mark";
        piece.textContent = part;
        return piece;
      }));
    }
  };
  const classOf = (i) => {
    let name = `t ${data.isScored(i) ? options.tint(i) : "unscored"}`;
    const [start, end] = [data.edges[i], data.edges[i + 1]];
    if (start === end) name += " empty";
    else if (data.bytes.subarray(start, end).every((byte) => byte === 10 || byte === 13)) name += " line-end";
    if (options.hits[i]) name += options.hits[i] === options.hit ? " hit the-hit" : " hit";
    return i === current ? `${name} now` : name;
  };
  const heading = (chunk, text, name) => {
    const made = document.createElement("p");
    made.className = name;
    made.textContent = text;
    chunk.element.append(made);
  };

  const fill = (k) => {
    const chunk = chunks[k];
    if (shown.has(k)) return;
    const leftOut = data.stretches.get(chunk.first);
    if (leftOut) heading(chunk, `${tokenData.counted(leftOut, "token")} left out`, "token-gap");
    if (leftOut !== undefined) heading(chunk, tokenData.visible(data.documents[data.document[chunk.first]]), "token-head");
    const spans = [];
    for (let i = chunk.first; i < chunk.stop; i++) {
      const span = document.createElement("span");
      span.className = classOf(i);
      span.tabIndex = i === current ? 0 : -1;
      put(span, i);
      spans.push(span);
    }
    chunk.element.append(...spans);
    chunk.element.dir = isRightToLeft(spans.map((span) => span.textContent).join("")) ? "rtl" : "ltr";
    if (k === chunks.length - 1 && data.left_out_after) {
      heading(chunk, `${tokenData.counted(data.left_out_after, "token")} left out`, "token-gap");
    }
    chunk.element.style.height = "";
    shown.set(k, spans);
  };
  const empty = (k, height) => {
    if (!shown.delete(k)) return;
    chunks[k].element.style.height = `${height}px`;
    chunks[k].element.replaceChildren();
  };

  /* Estimate the heights of chunks that are not filled. */
  const estimate = () => {
    const style = getComputedStyle(box);
    const [size, line] = [parseFloat(style.fontSize), parseFloat(style.lineHeight)];
    const perLine = Math.max(10, (box.clientWidth - 2 * parseFloat(style.paddingLeft)) / (0.47 * size));
    chunks.forEach((chunk, k) => {
      if (shown.has(k)) return;
      let [lines, start] = [data.stretches.has(chunk.first) ? 2 : 0, data.edges[chunk.first]];
      const stop = data.edges[chunk.stop];
      while (start < stop) {
        let end = data.bytes.indexOf(10, start);
        if (end < 0 || end >= stop) end = stop;
        lines += Math.max(1, Math.ceil((end - start) / perLine));
        start = end + 1;
      }
      chunk.element.style.height = `${lines * line}px`;
    });
  };

  const places = new Map(chunks.map((chunk, k) => [chunk.element, k]));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const k = places.get(entry.target);
      if (entry.isIntersecting) fill(k);
      else if (k !== chunkOf(current)) empty(k, entry.boundingClientRect.height);
    }
  }, { root: box, rootMargin: `${MARGIN}px 0px` });

  const spanOf = (i) => {
    const k = chunkOf(i);
    fill(k);
    return shown.get(k)[i - chunks[k].first];
  };
  const tokenOf = (target) => {
    const span = target.closest?.(".t");
    const k = span && places.get(span.parentElement);
    return k === undefined || k === null ? -1 : chunks[k].first + shown.get(k).indexOf(span);
  };
  const refresh = (withText = false) => {
    for (const [k, spans] of shown) {
      spans.forEach((span, j) => {
        span.className = classOf(chunks[k].first + j);
        if (withText) put(span, chunks[k].first + j);
      });
    }
  };

  /* Make a token the one that the Tab key reaches. */
  const choose = (i) => {
    const before = spanOf(current);
    const previous = current;
    current = i;
    before.tabIndex = -1;
    before.className = classOf(previous);
    const span = spanOf(i);
    span.tabIndex = 0;
    span.className = classOf(i);
    if (chunkOf(previous) !== chunkOf(i)) {
      watch.unobserve(chunks[chunkOf(previous)].element); // asks again whether it is near
      watch.observe(chunks[chunkOf(previous)].element);
    }
    return span;
  };

  /* Scroll the box until a token is well inside it. */
  const reveal = (i) => {
    const k = chunkOf(i);
    for (let near = Math.max(0, k - 2); near <= Math.min(chunks.length - 1, k + 2); near++) fill(near);
    const [around, at] = [box.getBoundingClientRect(), spanOf(i).getBoundingClientRect()];
    const room = Math.min(80, around.height / 4);
    if (at.top < around.top + room || at.bottom > around.bottom - room) {
      box.scrollTop += at.top - around.top - around.height / 3;
    }
  };

  /* The token above (-1) or below (1): of the next line, the one nearest in the line's direction. */
  const across = (i, direction) => {
    reveal(i);
    const from = spanOf(i).getClientRects()[0];
    let [best, line, nearest] = [i, null, Infinity];
    for (let j = i + direction; j >= 0 && j < data.n && Math.abs(j - i) < 2 * MOST; j += direction) {
      const at = spanOf(j).getClientRects()[0];
      if (!at || !(direction > 0 ? at.top >= from.bottom - 4 : at.bottom <= from.top + 4)) continue;
      line ??= at.top;
      if (Math.abs(at.top - line) > from.height / 2) break;
      const distance = Math.abs(at.left - from.left);
      if (distance < nearest) [best, nearest] = [j, distance];
    }
    return best;
  };

  const firstSeen = () => {
    const top = box.getBoundingClientRect().top;
    return Math.max(0, chunks.findIndex((chunk) => chunk.element.getBoundingClientRect().bottom > top));
  };
  /* Fill the chunks to print, from the one at the top of the box on. Returns their first and last token. */
  const forPrint = (most) => {
    const first = firstSeen();
    let k = first;
    for (; k < chunks.length && chunks[k].stop - chunks[first].first <= Math.max(most, chunks[first].stop - chunks[first].first); k++) fill(k);
    chunks.forEach((chunk, at) => chunk.element.classList.toggle("token-unprinted", at < first || at >= k));
    return [chunks[first].first, chunks[k - 1].stop];
  };
  const afterPrint = () => {
    for (const chunk of chunks) {
      chunk.element.classList.remove("token-unprinted");
      watch.unobserve(chunk.element);
      watch.observe(chunk.element);
    }
  };

  const start = () => {
    box.append(...chunks.map((chunk) => chunk.element));
    estimate();
    for (const chunk of chunks) watch.observe(chunk.element);
    let width = box.clientWidth;
    new ResizeObserver(() => {
      if (box.clientWidth !== width) estimate();
      width = box.clientWidth;
    }).observe(box);
  };

  return { box, start, choose, reveal, refresh, across, tokenOf, spanOf, forPrint, afterPrint, current: () => current };
};
