// Draws the charts in the colours of the page's style sheet, and again when it changes between light and dark.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const COLOURS = 6;
  // How opaque lines are: a band's edges keep a leap of one step visible.
  const SHARES = { curve: 0.85, band: 0.45 };
  const HOVERED = { curve: "<br>step %{x:,d}", points: "<br>step %{x:,d}", level: "<br>step %{x:,d}", dots: "<br>%{y}" };
  const hidden = new Set();
  const narrow = () => innerWidth < 600;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const clear = (hex, share) => {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${red},${green},${blue},${share})`;
  };

  function painted(trace) {
    const { run, part } = trace.meta;
    const colour = css(`--run-${run % COLOURS}`);
    const copy = { ...trace, visible: !hidden.has(run) };
    // Of one point at a time, what it is a point of is said as well.
    if (narrow() && HOVERED[part]) copy.hovertemplate = trace.hovertemplate.replace("<extra>", `${HOVERED[part]}<extra>`);
    if (part === "band") copy.fillcolor = clear(colour, 0.25);
    if (trace.line) copy.line = { ...trace.line, color: clear(colour, SHARES[part] ?? 1) };
    if (trace.marker) {
      const face = part === "mark" ? css("--ink") : colour;
      copy.marker = { ...trace.marker, color: face, line: { ...trace.marker.line, color: part === "mark" ? colour : css("--card") } };
    }
    return copy;
  }

  function draw() {
    const axis = { color: css("--soft"), gridcolor: css("--grid"), linecolor: css("--line"), tickcolor: css("--line"),
      spikecolor: css("--soft"), spikethickness: 1 };
    const family = getComputedStyle(document.body).fontFamily;
    return Promise.all(figures.map((figure, number) => {
      const layout = structuredClone(figure.layout);
      layout.paper_bgcolor = layout.plot_bgcolor = css("--card");
      layout.font = { color: css("--ink"), family, size: 12 };
      layout.hoverlabel = { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), family, size: 12 } };
      if (narrow()) layout.hovermode = "closest"; // a box with all curves would hide them
      layout.modebar = { color: css("--soft"), activecolor: css("--ink"), bgcolor: "rgba(0,0,0,0)" };
      for (const name of ["xaxis", "yaxis"]) layout[name] = { ...layout[name], ...axis };
      const options = { responsive: true, displaylogo: false, displayModeBar: false };
      return Plotly.react(`chart-${number}`, figure.data.map(painted), layout, options);
    }));
  }

  for (const box of document.querySelectorAll("input[data-run]")) {
    box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](Number(box.dataset.run));
      draw();
    });
  }
  dark.addEventListener("change", draw);
  draw().then(() => document.documentElement.setAttribute("data-drawn", String(figures.length)));
})();
