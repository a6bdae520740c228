"""The page in a real browser: its sliders give the images that PyTorch computes."""

import http.server
import json
import os
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.exported_networks import build, save

from gantx.exporting import export
from gantx.exporting.generator import latents_of
from gantx.generation import sampling
from gantx.generation.interpolation import slerp

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
const look = () => {
  const canvas = page().getElementById("canvas");
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
};
const report = { steps: [] };
await wait(() => shown() || failed());
const steps = STEPS;
for (const step of failed() ? [] : steps) {
  for (const [name, value] of Object.entries(step)) {
    const slider = page().getElementById(name);
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }
  const wanted = new URLSearchParams({ seed: 5, to: 1, morph: 0, truncation: 1, ...step }).toString();
  await wait(() => shown() === wanted || failed());
  report.steps.push({ shown: shown(), pixels: look() });
}
if (!failed()) {
  report.truncates = !page().getElementById("truncation").hidden;
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


def visit(folder, steps, profile):
    """The report of a headless browser that reaches nothing but this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    server.harness = HARNESS.replace("STEPS", json.dumps(steps))
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
@pytest.mark.parametrize("family", ["transgan", "stylegan2"])
def test_the_page_generates_what_pytorch_generates(family, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    request = export.Request(tmp_path / "demo", "web", runtime=Path(PACKAGE))
    export.export(save(tmp_path, family), request, print)
    generator = build(family)
    steps = [{"seed": 5}, {"seed": 200}, {"seed": 7, "to": 9, "morph": 0.25}]
    if family == "stylegan2":
        steps.append({"seed": 7, "to": 9, "morph": 0.25, "truncation": 0.5})
    report = visit(tmp_path / "demo", steps, tmp_path / "profile")
    assert report["failed"] is None
    assert report["truncates"] == (family == "stylegan2")
    assert report["name"] == "seed-7-to-9-at-0.25.png"
    for step, seen in zip(steps, report["steps"], strict=True):
        start, end = latents_of(generator, [step["seed"], step.get("to", 1)]).split(1)
        along = torch.tensor([step.get("morph", 0.0)])
        if family == "transgan":
            images = generator(slerp(start, end, along))
        else:
            ws = torch.lerp(generator.mapping(start), generator.mapping(end), along)
            images = generator.synthesis(generator.w_avg.lerp(ws, step.get("truncation", 1.0)))
        pixels = torch.tensor(seen["pixels"]).view(*generator.image_shape[1:], 4)
        assert bool((pixels[..., 3] == 255).all())
        difference = pixels[..., :3].permute(2, 0, 1) - sampling.quantise(images)[0].int()
        assert int(difference.abs().max()) <= 2, step
