"""The page in a real browser: its sliders and selectors give the images that PyTorch computes."""

import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.exported_networks import NAMES, build, save

from gantx.config.schema import ConditioningConfig
from gantx.exporting import export
from gantx.exporting.generator import latents_of
from gantx.generation import sampling
from gantx.generation.interpolation import slerp
from gantx.generation.labels import drawn_labels
from gantx.models.interfaces import StyleBased

BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome", "chrome"])), None
)
PACKAGE = os.environ.get("ONNXRUNTIME_WEB")  # the npm package, as a folder or .tgz

# Drives the page in a frame as a person would, and sends back what is on the canvas after each step.
HARNESS = """<!doctype html><iframe id="frame" src="index.html#seed=5" width="800" height="600"></iframe>
<script type="module">
const frame = document.getElementById("frame");
const wait = (until) => new Promise((done) => {
  const timer = setInterval(() => { if (until()) { clearInterval(timer); done(); } }, 20);
});
const page = () => frame.contentDocument;
const shown = () => page()?.documentElement.dataset.shown;
const failed = () => page()?.documentElement.dataset.failed;
const input = (name, value) => {
  page().getElementById(name).value = value;
  page().getElementById(name).dispatchEvent(new Event("input", { bubbles: true }));
};
const look = () => {
  const canvas = page().getElementById("canvas");
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
};
const visit = async (address) => {
  frame.src = "about:blank";
  await wait(() => frame.contentWindow.location.href === "about:blank");
  frame.src = address;
  await wait(() => shown() || failed());
};
const report = { steps: [] };
const [defaults, steps] = [DEFAULTS, STEPS];
await wait(() => shown() || failed());
for (const step of failed() ? [] : steps) {
  const settings = { ...defaults, ...step };
  for (const [name, value] of Object.entries(settings)) input(name, value);
  const wanted = new URLSearchParams(settings).toString();
  await wait(() => shown() === wanted || failed());
  report.steps.push({ shown: shown(), pixels: look(), status: page().getElementById("status").textContent });
}
if (!failed()) {
  report.truncates = !page().getElementById("truncation").hidden;
  report.selectors = ["class", "to-class"].map((name) => page().getElementById(name)).map((select) => ({
    hidden: select.offsetParent === null,
    label: select.labels[0].textContent,
    search: page().getElementById(`${select.id}-find`).offsetParent !== null,
    options: [...select.options].map((one) => [one.value, one.textContent, one.children.length]),
  }));
  report.name = await new Promise((done) => {
    frame.contentWindow.HTMLAnchorElement.prototype.click = function () { done(this.download); };
    page().getElementById("download").click();
  });
  const before = shown();
  page().getElementById("play").click();
  await wait(() => shown() !== before || failed());
  page().getElementById("play").click();
}
report.failed = failed() ?? null;
if (defaults.class) {
  await visit("index.html#class=99");
  report.unknown = failed();
  input("class", "1");
  await wait(() => shown());
  report.afterwards = failed() ?? null;
  await visit("many/index.html#class=700");
  report.refused = failed();
  input("class-find", "ASS 1_20");
  page().getElementById("class-find").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  const select = page().getElementById("class");
  report.found = [...select.options].map(({ value }) => value).concat(select.value);
  input("class-find", "");
  report.listed = [select.options.length, select.value, select.options[select.options.length - 1].disabled];
}
await fetch("/report", { method: "POST", body: JSON.stringify(report) });
</script>"""


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves the page, the harness around it, and takes the report."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path != "/harness.html":
            return super().do_GET()
        body = self.server.harness.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return self.wfile.write(body)

    def do_POST(self):
        self.server.report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()


def visit(folder, defaults, steps, profile):
    """The report of a headless browser that reaches nothing but this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    server.harness = HARNESS.replace("STEPS", json.dumps(steps)).replace("DEFAULTS", json.dumps(defaults))
    server.done = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = subprocess.Popen(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--no-first-run", "--remote-debugging-port=0",
            f"http://127.0.0.1:{server.server_address[1]}/harness.html",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert server.done.wait(120), "the page did not finish"
        return server.report
    finally:
        browser.terminate()
        browser.wait(30)
        server.shutdown()
        server.server_close()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.skipif(PACKAGE is None, reason="ONNXRUNTIME_WEB names no npm package onnxruntime-web")
@pytest.mark.parametrize(("family", "names"), [("transgan", ()), ("transgan", NAMES), ("stylegan2", NAMES)])
def test_the_page_generates_what_pytorch_generates(family, names, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    request = export.Request(tmp_path / "demo", "web", runtime=Path(PACKAGE))
    export.export(save(tmp_path, family, names), request, print)
    generator = build(family, len(names) + 1 if names else 0)
    defaults = {"seed": 5, "to": 1, "morph": 0, "truncation": 1}
    steps = [{}, {"seed": 200}, {"seed": 7, "to": 9, "morph": 0.25}]
    if family == "stylegan2":
        steps.append({"seed": 7, "to": 9, "morph": 0.25, "truncation": 0.5})
    if names:
        defaults |= {"class": "any", "to-class": "same"}
        steps += [
            {"class": "0"},
            {"class": "1"},
            {"class": "2"},  # none in particular
            {"to": 6, "morph": 0.75},  # each end has the class of its seed
            {"to": 5, "class": "0", "to-class": "1", "morph": 0.25},
        ]
        with_many_classes(tmp_path / "demo")
    report = visit(tmp_path / "demo", defaults, steps, tmp_path / "profile")
    assert report["failed"] is None
    assert report["truncates"] == (family == "stylegan2")
    last = "seed-5-to-5-at-0.25-class-0-to-1.png" if names else "seed-7-to-9-at-0.25.png"
    assert report["name"] == last
    for step, seen in zip(steps, report["steps"], strict=True):
        pixels = torch.tensor(seen["pixels"]).view(*generator.image_shape[1:], 4)
        assert bool((pixels[..., 3] == 255).all())
        images = expected(generator, names, defaults | step)
        difference = pixels[..., :3].permute(2, 0, 1) - sampling.quantise(images)[0].int()
        assert int(difference.abs().max()) <= 2, step
    if names:
        classes_are_chosen(report)
    else:
        assert [selector["hidden"] for selector in report["selectors"]] == [True, True]


def expected(generator, names, settings):
    """What PyTorch computes for the settings of the page."""
    seeds = [settings["seed"], settings["to"]]
    start, end = latents_of(generator, seeds).split(1)
    along = torch.tensor([float(settings["morph"])])
    labels = [None, None]
    if names:
        chosen = [settings["class"], settings["to-class"]]
        chosen[1] = chosen[0] if chosen[1] == "same" else chosen[1]
        own = drawn_labels(ConditioningConfig(classes=2, counts=(1, 2), dropout=0.1), seeds)
        labels = [own[end] if chosen[end] == "any" else int(chosen[end]) for end in range(2)]
        labels = [torch.tensor([label]) for label in labels]
    if not isinstance(generator, StyleBased):
        rows = [torch.eye(generator.classes)[label] for label in labels] if names else None
        given = {"labels": torch.lerp(*rows, along)} if rows else {}
        return generator(slerp(start, end, along), **given)
    first, last = (generator.mapping(z, label) for z, label in zip((start, end), labels, strict=True))
    return generator.synthesis(generator.w_avg.lerp(torch.lerp(first, last, along), settings["truncation"]))


def with_many_classes(folder):
    """A page in `folder`/many that says of the same network that it has a thousand classes."""
    shutil.copytree(folder, folder.parent / "many")
    (folder.parent / "many").rename(folder / "many")
    about = json.loads((folder / "many" / "demo.json").read_text())
    about |= {"classes": [f"class 1_{label}" for label in range(1000)], "no_class": None}
    (folder / "many" / "demo.json").write_text(json.dumps(about))


def classes_are_chosen(report):
    """The selectors: labelled, complete, escaped, searched when long; unknown labels are no image."""
    cat, dog = report["steps"][-5:-3]
    assert cat["pixels"] != dog["pixels"]
    assert re.fullmatch(r"Generated in \d+ ms: cat", cat["status"])
    assert report["steps"][-1]["status"].endswith(r": cat to <b>dog</b> & \u202eco.")
    known = [["0", "cat", 0], ["1", r"<b>dog</b> & \u202eco.", 0]]
    others = [["any", "any: each seed has its own", 0], ["2", "none in particular", 0]]
    assert [(each["label"], each["hidden"], each["search"]) for each in report["selectors"]] == [
        ("Class", False, False), ("Morph to class", False, False)
    ]  # fmt: skip
    assert report["selectors"][0]["options"] == others + known
    assert report["selectors"][1]["options"] == [["same", "the same", 0], *others, *known]
    assert "there is no class 99 among the 2" in report["unknown"]
    assert report["afterwards"] is None
    assert "out of data bounds" in report["refused"]
    matching = ["20", *(str(label) for label in range(200, 210))]
    assert report["found"] == ["any", *matching, "20"]
    assert report["listed"] == [502, "20", True]
