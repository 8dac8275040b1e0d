"use strict";
(() => {
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const file = (name) => `${location.pathname.split("/").pop().replace(/\.html$/, "") || "report"}-${name}`;

  const button = (place, label, name, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = label;
    made.setAttribute("aria-label", name);
    made.addEventListener("click", act);
    place.append(made);
    return made;
  };

  const save = (name, blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  // A copy of a chart with the colours of this moment, which stands alone.
  const copied = (svg) => {
    const copy = svg.cloneNode(true);
    const colours = getComputedStyle(root);
    const [, , width, height] = svg.getAttribute("viewBox").split(/[\s,]+/).map(Number);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    copy.setAttribute("font-family", "Helvetica Neue, Helvetica, Arial, sans-serif");
    for (const part of [copy, ...copy.querySelectorAll("*")]) {
      for (const { name, value } of [...part.attributes]) {
        if (value.includes("var(--")) {
          part.setAttribute(name, value.replace(/var\((--[\w-]+)\)/g, (_, own) => colours.getPropertyValue(own).trim()));
        }
      }
    }
    const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of [["width", "100%"], ["height", "100%"], ["fill", colours.getPropertyValue("--paper").trim()]]) {
      paper.setAttribute(name, value);
    }
    copy.prepend(paper);
    return { text: new XMLSerializer().serializeToString(copy), width, height };
  };

  const savePng = (svg, name) => {
    const { text, width, height } = copied(svg);
    const image = new Image();
    image.addEventListener("load", () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [2 * width, 2 * height];
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(name, blob));
    });
    image.src = `data:image/svg+xml,${encodeURIComponent(text)}`;
  };

  const csv = (rows) => {
    const names = [...new Set(rows.flatMap(Object.keys))];
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [names, ...rows.map((row) => names.map((name) => row[name]))].map((row) => row.map(cell).join(",") + "\r\n").join("");
  };

  const rows = read("chart-data");
  for (const figure of document.querySelectorAll("figure.chart")) {
    const svg = figure.querySelector("svg");
    const title = figure.querySelector("h3").textContent;
    const place = document.createElement("div");
    place.className = "downloads";
    const kinds = {
      SVG: () => save(file(`${figure.id}.svg`), new Blob([copied(svg).text], { type: "image/svg+xml" })),
      PNG: () => savePng(svg, file(`${figure.id}.png`)),
      CSV: () => save(file(`${figure.id}.csv`), new Blob([csv(rows[figure.id])], { type: "text/csv" })),
    };
    for (const [kind, act] of Object.entries(kinds)) button(place, kind, `Save ${kind} of: ${title}`, act);
    figure.append(place);
  }

  const tools = document.getElementById("tools");
  button(tools, "Save JSON", "Save JSON of the values of this page", () =>
    save(file("values.json"), new Blob([JSON.stringify(read("page-data"), null, 1)], { type: "application/json" })));
  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const toggle = button(tools, "", "", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  const label = () => {
    toggle.textContent = isDark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", `Show this page ${isDark() ? "light" : "dark"}`);
  };
  toggle.id = "theme";
  label();
})();
