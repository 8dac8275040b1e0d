// The bars of a prediction, on a linear scale or on a logarithmic one.
(() => {
  const table = document.getElementById("bars");
  if (!table) return;
  const rows = [...table.querySelectorAll("tbody tr")].map((row) => [
    row.querySelector("rect"),
    Number(row.querySelector("data").value),
  ]);
  const most = rows[0][1];
  const least = Math.min(...rows.map(([, probability]) => probability).filter(Boolean)) / 10;
  let logarithmic = false;
  const toggle = document.createElement("button");
  toggle.type = "button";
  toggle.textContent = "Logarithmic bars";
  const draw = () => {
    toggle.setAttribute("aria-pressed", logarithmic);
    for (const [bar, probability] of rows) {
      const share = logarithmic ? Math.log(Math.max(probability, least) / least) / Math.log(most / least) : probability / most;
      bar.setAttribute("width", 100 * share);
    }
  };
  toggle.addEventListener("click", () => {
    logarithmic = !logarithmic;
    draw();
  });
  table.parentElement.before(toggle);
  draw();
})();
