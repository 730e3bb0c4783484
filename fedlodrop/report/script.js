(async () => {
  "use strict";
  const places = [...document.querySelectorAll(".plot")];
  // The buttons are listed: by default plotly also offers one that sends the chart to its maker's servers.
  const config = {responsive: true, displaylogo: false, doubleClick: "reset", plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]};
  // Plotly is embedded compressed: a third of its size, and no text in the page that looks like an address.
  const unpack = async id => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), c => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const charts = {};
  const draw = place => Plotly.newPlot(place, charts[place.id].data, charts[place.id].layout,
    {...config, toImageButtonOptions: {filename: place.id, scale: 2}});
  // A frame that is still being written holds back the page's load event: whoever prints or photographs the page at that
  // event, as browsers without a window do, finds the charts drawn.
  const hold = document.body.appendChild(document.createElement("iframe"));
  hold.hidden = true;
  hold.contentDocument.open();
  try {
    const [library, figures] = await Promise.all([unpack("plotly-gz"), unpack("figures-gz")]);
    const script = document.createElement("script");
    script.textContent = library;
    document.head.append(script);
    for (const figure of JSON.parse(figures)) charts[figure.key] = figure;
    for (const place of places) {
      if (place.closest("details:not([open])")) continue;  // drawn when it is unfolded
      await draw(place);
      await new Promise(done => setTimeout(done));  // let the page answer between two drawings
    }
  } catch (error) {
    for (const place of places) if (!place.hasChildNodes()) place.classList.add("broken");
    console.error(error);
  } finally {
    hold.contentDocument.close();
    hold.remove();
  }
  const drawn = key => charts[key] && document.getElementById(key).hasChildNodes();

  for (const group of document.querySelectorAll("fieldset[data-axis]")) {
    group.addEventListener("change", event => {
      for (const key of group.dataset.axis.split(" ")) {
        if (!drawn(key)) continue;
        const axis = charts[key].axes[event.target.value];
        Plotly.update(key, {x: axis.x}, {"xaxis.title.text": axis.title, "xaxis.dtick": axis.dtick,
          "xaxis.autorange": true, "yaxis.autorange": true});
      }
    });
  }
  for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", () => {
    if (part.open) for (const place of part.querySelectorAll(".plot")) if (charts[place.id] && !drawn(place.id)) draw(place);
  });
  // Two choices decide which curves are shown: the kinds of curves, and the runs.
  const chosen = selector => new Set([...document.querySelectorAll(`${selector} input:checked`)].map(box => box.value));
  const show = () => {
    const kinds = chosen("fieldset[data-splits]"), runs = chosen("fieldset[data-runs]");
    for (const place of places) {
      const {splits, owners} = charts[place.id] || {splits: [], owners: []};
      if (!drawn(place.id) || !splits.length && !owners.length) continue;
      // What the reader hid by the legend stays hidden.
      const hidden = new Set(place.data.filter(trace => trace.visible === "legendonly").map(trace => trace.name));
      const off = k => splits[k] && !kinds.has(splits[k]) || (owners[k] ?? null) !== null && !runs.has(String(owners[k]));
      const visible = (trace, k) => off(k) ? false : hidden.has(trace.name) ? "legendonly" : true;
      Plotly.restyle(place, {visible: place.data.map(visible)});
    }
  };
  for (const group of document.querySelectorAll("fieldset[data-splits],fieldset[data-runs]"))
    group.addEventListener("change", show);
  if (document.querySelector("fieldset input:not(:checked)")) show();  // a browser may have kept the boxes of an earlier visit
  for (const box of document.querySelectorAll("fieldset[data-axis] input:checked")) {
    if (box.value !== "round") box.dispatchEvent(new Event("change", {bubbles: true}));
  }

  const shown = document.body.dataset.version;
  if (shown) setInterval(async () => {
    const now = await fetch("version").then(answer => answer.ok ? answer.text() : shown, () => shown);
    if (now !== shown) location.reload();
  }, 2000);

  const folded = [];
  addEventListener("beforeprint", () => {
    for (const item of document.querySelectorAll("details:not([open])")) {
      if (item.matches(".run,.tables,.run *")) continue;  // whoever wants a run in full unfolds it before
      if (item.querySelectorAll("tr").length > 60) continue;  // long tables would bury the charts
      item.open = true;
      folded.push(item);
    }
    for (const place of places) if (drawn(place.id))
      Plotly.relayout(place, {width: charts[place.id].owners.length ? 325 : 690, autosize: false});
  });
  addEventListener("afterprint", () => {
    while (folded.length) folded.pop().open = false;
    for (const place of places) if (drawn(place.id)) Plotly.relayout(place, {width: null, autosize: true});
  });
  document.documentElement.dataset.ready = "yes";
})();
