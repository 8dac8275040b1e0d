"use strict";
/* The tokens of the page: unpacked, as text, and as numbers a person can read. Nothing here touches the document. */
const tokenData = (() => {
  const TYPES = { f4: Float32Array, i4: Int32Array, i2: Int16Array, i1: Int8Array, u1: Uint8Array };
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const isMiddle = (byte) => (byte & 0xc0) === 0x80; // of a character of several bytes

  const unpack = async (base64) => {
    const packed = atob(base64.trim());
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    const size = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, size)));
    const columns = Object.entries(header.columns).map(([name, [type, start, length]]) =>
      [name, new TYPES[type](buffer, 4 + size + start, length)]);
    return { ...header, ...Object.fromEntries(columns) };
  };

  /* Where the text of each token begins. A character belongs to the token with its first byte, so a token that has only
     later bytes of one is empty. Characters do not reach from one stretch into the next. */
  const edgesOf = (data) => {
    const offsets = new Uint32Array(data.n + 1);
    for (let i = 0; i < data.n; i++) offsets[i + 1] = offsets[i] + data.length[i];
    const edges = offsets.slice();
    let end = offsets[data.n];
    for (let i = data.n - 1; i >= 0; i--) {
      if (data.stretches.has(i)) {
        end = offsets[i];
      } else {
        while (edges[i] < end && isMiddle(data.bytes[edges[i]])) edges[i]++;
      }
    }
    return [offsets, edges];
  };

  /* The first tokens of documents and of excerpts, with the number of tokens left out before. */
  const stretchesOf = (data) => {
    const stretches = new Map();
    for (let i = 0; i < data.n; i++) if (!i || data.document[i] !== data.document[i - 1]) stretches.set(i, 0);
    for (const [first, leftOut] of data.excerpts) stretches.set(first, leftOut);
    return stretches;
  };

  const read = async (base64) => {
    const data = await unpack(base64);
    data.stretches = stretchesOf(data);
    [data.offsets, data.edges] = edgesOf(data);
    data.k = data.n ? data.top.length / data.n : 0;
    data.text = (i) => decoder.decode(data.bytes.subarray(data.edges[i], data.edges[i + 1]));
    data.isScored = (i) => !Number.isNaN(data.nll[i]);
    data.change = (i) => data.nats_a[i] === data.nats_b[i] ? 0 : data.nats_b[i] - data.nats_a[i];
    return data;
  };

  const escaped = (character) => {
    const code = character.codePointAt(0);
    const [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return `\\${letter}${code.toString(16).padStart(digits, "0")}`;
  };

  const SPECIAL = /(?! )[\p{C}\p{Z}]/u;
  const ALL_SPECIAL = new RegExp(SPECIAL, "gu");
  // A line may break after a space that is marked: U+200B.
  const MARKS = { " ": "·\u200b", "\t": "→\t", "\n": "⏎\n", "\r": "␍" };

  /* A token as pieces [text, whether it stands for something else]. Control and bidi characters are always escaped;
     spaces and line ends are marked on demand. `beforeEnd`: whether a line end follows the token. */
  const pieces = (text, marked, beforeEnd) => {
    if (!marked && !SPECIAL.test(text)) return [[text, false]];
    const parts = [];
    const put = (piece, isMark) => {
      const last = parts.at(-1);
      if (last && last[1] === isMark) last[0] += piece;
      else parts.push([piece, isMark]);
    };
    const characters = [...text];
    characters.forEach((character, at) => {
      const endsLine = character === "\r" && (at + 1 < characters.length ? characters[at + 1] === "\n" : beforeEnd);
      if (marked && character in MARKS && (character !== "\r" || endsLine)) put(MARKS[character], true);
      else if (character === "\n" || character === "\t" || endsLine) put(endsLine ? "" : character, false);
      else if (!SPECIAL.test(character)) put(character, false);
      else if (!marked && /\p{Zs}/u.test(character)) put(character, false);
      else put(escaped(character), true);
    });
    return parts;
  };

  const visible = (text) => {
    return text.replace(ALL_SPECIAL, (c) => c === "\n" ? "\\n" : c === "\t" ? "\\t" : c === "\r" ? "\\r" : escaped(c));
  };

  const hex = (data, i) =>
    Array.from(data.bytes.subarray(data.offsets[i], data.offsets[i + 1]), (byte) => byte.toString(16).padStart(2, "0")).join(" ");

  const fixed = (value) => Number.isFinite(value) ? value.toFixed(4) : value > 0 ? "∞" : value < 0 ? "−∞" : "—";
  const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${fixed(Math.abs(value))}`;
  const odds = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 2 });
  const probability = (p) => {
    if (p === 0) return "0%";
    if (p < 1e-5) return 1 / p < 1e15 ? `1 in ${odds.format(1 / p)}` : p.toExponential(1).replace("-", "−");
    return `${Number((100 * p).toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 8 })}%`;
  };
  const whole = (value) => value.toLocaleString("en");
  const counted = (n, noun) => `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;

  return { read, pieces, visible, hex, fixed, signed, probability, whole, counted };
})();
