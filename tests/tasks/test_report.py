"""`hub report`: what it shows of finished, failed and damaged runs, and that nothing of a run gets out of its text."""

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from tasks.browser import BROWSER, Browser

import hub as hub_package
from hub import compose
from hub.config.schema import RunConfig
from hub.launch.launcher import launch
from hub.models.finished import Asked
from hub.tasks.report.record import read_record
from hub.tasks.report.report import report
from hub.tasks.report.samples import pieces_of, samples_of
from hub.tasks.report.series import charts_of, thinned
from hub.tasks.report.verb import ReportOptions

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"
SECRET = "hf_abcdefghijklmnopqrstuvwx"
FLOAT = "model.dtype=float32"


def conversation(user: str, assistant: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}) + "\n"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run on two sources, one of them with a hostile name, with texts, answers and measurements that are as bad."""
    folder = tmp_path_factory.mktemp("report")
    first, second = folder / "own.jsonl", folder / "<b>more.jsonl"
    first.write_text(conversation(EVIL, f"fine\n{EVIL} 🎉 你好") + conversation("a", "b" * 40) * 20 + '{"messages": 3}\n')
    second.write_text(conversation(f"my token is {SECRET}", "never say it") + conversation("c", "d" * 20) * 9)
    mix = f"data.mix=[{{path: '{first}', weight: 0.7}}, {{path: '{second}', weight: 0.3}}]"
    options = ["data.on_bad_row=skip", "data.eval_fraction=0.2", "algo.max_steps=6", "algo.eval_every_steps=2", FLOAT]
    cfg = compose("algo=lora_sft", "model=tiny", "launch=inline", f"output_dir={folder}/runs", "run_name=first", mix, *options)
    launch(cfg)
    run = folder / "runs/first"
    interval = {"low": -0.5, "high": -0.1, "p": 0.01, "test": "bootstrap"}
    rows = [
        measured("learnt", "lower", -0.3, interval),
        measured("kept", "lower", 0.3, interval | {"low": 0.1, "high": 0.5}),
        measured("kept", "higher", 0.0, interval | {"low": -0.1, "high": 0.1}),
        measured("learnt", "higher", 0.3, interval | {"low": 0.1, "high": 0.5}),
    ]
    models = [{"name": EVIL}, {"name": "before"}]
    steps = [{"step": step, "rows": rows[:2]} for step in (2, 4)]
    whole = {"version": 1, "models": models, "settings": {}, "rows": rows, "steps": steps}
    (run / "evaluation.json").write_text(json.dumps(whole))
    answer = {"row": 1, "prompt": f"ask {EVIL}", "answer": f"after {SECRET}", "base_answer": "before", "reference": "right"}
    (run / "answers.jsonl").write_text(json.dumps(answer) + "\n")
    return run


def measured(role: str, better: str, value: float, interval: dict) -> dict:
    values = [{"value": 1.5, "stderr": 0.1}, {"value": 1.8, "stderr": 0.1}]
    row = {"set": f"set {role} {EVIL}", "kind": "loss", "metric": "loss", "unit": "nats/token", "better": better, "role": role}
    return row | {"n": 7, "values": values, "difference": {"value": value, **interval}}


def words(page: str) -> str:
    """The text of a page."""
    return unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)))


def copy_of(run: Path, folder: Path, *without: str, **changed: str) -> Path:
    """The files of a run without some, in another folder."""
    folder.mkdir()
    for file in run.iterdir():
        if file.is_file() and file.name not in without:
            (folder / file.name).write_bytes(file.read_bytes())
    for name, text in changed.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_the_report_has_all_of_a_run_and_lets_no_text_out_of_its_place(trained, hub, tmp_path):
    said = hub("report", f"run={trained}", f"png={tmp_path}/curves.png", "samples=4")
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == f"wrote {trained}/report.html and {tmp_path}/curves.png"
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    page = (trained / "report.html").read_text()
    text = " ".join(words(page).split())
    for part in (
        "first completed", "lora_sft · tiny:llama", "held-out loss", "6", "algo.eval_every_steps", "packed", "because",
        "Loss is on the assistant's turns only", "own", "70.0%", "bad rows", "Tokens per sample",
        "learned", "lost", "kept", "-0.3 (-0.5 to -0.1)", "before", "right", f"python -m hub {trained}/run.yaml",
    ):  # fmt: skip
        assert part in text, part
    verdicts = page[page.index('id="measured"') : page.index('id="curves"')]
    assert re.findall(r'class="badge \w+">([\w ]+)<', verdicts) == ["learned", "lost", "kept", "learned"]
    assert f"Losses measured meanwhile nats per token set learnt {EVIL}: loss" in text
    # Texts of users stay text, and secrets stay out, however the tokens part them.
    assert EVIL in text
    assert page.count("<script") == page.count("</script>") == 1 + page.count('<script type="application/json"')
    assert "<img" not in page
    assert "<b>" not in page
    assert SECRET not in page
    assert SECRET[3:12] not in page
    assert "It holds a secret, which is redacted" in text
    # Nothing is loaded from anywhere.
    assert not re.search(r"https?://|//[a-z]|@import|url\(|<link|src=(?!x onerror)", page)
    assert "default-src 'none'" in page
    assert len(page) < 200_000


def test_shading_follows_the_loss_mask_token_by_token(trained):
    shown, why = samples_of(read_record(trained), 2)
    assert (len(shown), why) == (2, "")
    first = shown[0]
    assert "".join(piece.text for piece in first.pieces if piece.has_loss) == f"fine\n{EVIL} 🎉 你好<|im_end|>"
    assert first.num_tokens > len(first.pieces)  # the bytes of an emoji are one piece
    assert not any("\ufffd" in piece.text for piece in first.pieces)
    assert sum(piece.has_loss for piece in first.pieces) <= first.num_loss_tokens


def test_pieces_of_a_tokenizer_that_drops_the_space_of_a_first_token():
    class Words:
        def decode(self, ids, skip_special_tokens):
            return " ".join("abcdef"[number] for number in ids)

    pieces = list(pieces_of([0, 1, 2, 3], [False, False, True, True], Words()))
    assert [(piece.text, piece.has_loss) for piece in pieces] == [("a", False), (" b", False), (" c", True), (" d", True)]


def test_runs_that_are_unfinished_failed_or_damaged_get_a_report_too(trained, tmp_path):
    failure, options = json.dumps({"rank": 1, "message": f"out of luck {EVIL}"}), (trained / "run.yaml").read_text()
    cases = {
        "going": ("not finished", "no result", ["result.json"], {}),
        "failed": ("failed", "out of luck", [], {"result_json": json.dumps({"status": "failed", "error": "too bad"}),
                                                "error-rank1_json": failure}),
        "interrupted": ("interrupted", "python -m hub resume=", [], {"result_json": json.dumps({"status": "interrupted"})}),
        "damaged": ("not finished", "result.json can't be read", [], {"result_json": '{"status":', "plan_json": "[1]"}),
        "odd": ("completed", "Not shown", [], {"plan_json": '{"data": {"train": {"num_rows": "x"}}, "num_steps": {}}',
                                               "evaluation_json": '{"rows": 5, "steps": [{"rows": 5}], "examples": 5}'}),
        "bare": ("not finished", "no step was logged", ["metrics.jsonl", "plan.json", "result.json"], {}),
        "foreign": ("completed", "algo.lora_r", [], {"run_yaml": options.replace("lora_sft", "gone")}),
    }  # fmt: skip
    for name, (status, expected, without, changed) in cases.items():
        run = copy_of(trained, tmp_path / name, *without, **changed)
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "los')  # as a run that is killed leaves it
        if "metrics.jsonl" in without:
            (run / "metrics.jsonl").unlink()
        report(Asked(options=ReportOptions(run=str(run), samples=0), cfg=RunConfig()))
        text = " ".join(words((run / "report.html").read_text()).split())
        assert f"{name} {status}" in text
        assert expected in text, name
        assert ("hub chat" in text) <= (status == "completed")


def test_samples_say_why_there_are_none(trained, tmp_path):
    record = read_record(copy_of(trained, tmp_path / "moved", "plan.json"))
    assert samples_of(record, 2)[1] == "The tokenizer of the run is not on this machine."
    record = read_record(trained)
    record.cfg.data.mix[0].path = str(tmp_path / "gone.jsonl")
    assert samples_of(record, 2)[1] == f"The data of the run is not on this machine: {tmp_path}/gone.jsonl."


def test_several_runs_are_compared_by_what_differs(trained, hub, tmp_path):
    other = copy_of(trained, tmp_path / "second")
    (other / "run.yaml").write_text((trained / "run.yaml").read_text().replace("lora_r: 16", "lora_r: 8"))
    said = hub("report", f"runs=[{trained},{other}]", f"out={tmp_path}/both.html", "--json")
    assert json.loads(said.out)["runs"] == [str(trained), str(other)]
    page = (tmp_path / "both.html").read_text()
    options = page[page.index('id="options"') :]
    assert re.findall(r"<code>([\w.]+)</code>", options) == ["algo.lora_r"]
    assert page.count("<figure") == 6
    both = [json.loads(text) for text in re.findall(r'class="points">(.*?)</script>', page)]
    assert [[series["label"] for series in chart["series"]] for chart in both] == [["first", "second"]] * 6
    twins = [copy_of(trained, tmp_path / "a"), copy_of(trained, tmp_path / "b")]
    for twin in twins:
        (twin / "one").mkdir()
        copy_of(trained, twin / "one" / "same")
    made = hub_package.report(runs=[twins[0] / "one/same", twins[1] / "one/same"], out=tmp_path / "twins.html")
    assert len(made.runs) == 2
    assert "<iframe srcdoc=" in made._repr_html_()
    for number, twin in enumerate(twins):
        run = shutil.copytree(twin / "one/same", tmp_path / "sweep" / str(number))
        (run / "overrides.json").write_text("[]")
    assert len(hub_package.report(runs=[tmp_path / "sweep"], out=tmp_path / "sweep.html").runs) == 2
    with pytest.raises(hub_package.ConfigError, match=r"is a sweep\. Type runs="):
        hub_package.report(run=tmp_path / "sweep")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "hub report: no run is named. Type run=latest, run=RUN_FOLDER, or runs=A,B to compare"),
        (["run=a", "runs=[b,c]"], "run=a and runs= are both set. Type run=RUN for one run, or runs=A,B to compare"),
        (["run=latest"], "run=latest: there is no run in "),
        (["run=gone"], "run=gone: "),
        (["run=a", "out=a.txt"], "out=a.txt is not allowed. Allowed: a file that ends in .html"),
        (["run=a", "png=a.jpg"], "png=a.jpg is not allowed. Allowed: a file that ends in .png"),
        (["run=a", "samples=99"], "samples=99 is not allowed. Allowed: a number at least 0 and at most 50"),
        (["run=a", "algo.lora_r=3"], "algo.lora_r: hub report does not read it. It takes its own options."),
    ],
)
def test_mistakes_are_answered_with_one_line(words, line, hub):
    said = hub("report", *words)
    assert said.code == 2
    assert len(said.problems) == 1
    assert said.problems[0].startswith(line)


def test_a_file_that_can_not_be_written_and_a_single_run_to_compare(trained, hub, tmp_path):
    said = hub("report", f"run={trained}", f"out={tmp_path}/gone/r.html", "samples=0")
    (line,) = said.problems
    assert line.startswith(f"{tmp_path}/gone/r.html: can't write there (No such file or directory). Type out=FILE.html")
    said = hub("report", f"runs=[{trained}]")
    assert said.problems[0].startswith(f"runs={trained} names one run only.")


@pytest.mark.slow
def test_a_long_run_gives_a_small_page_without_torch(trained, tmp_path):
    lines = []
    for step in range(1, 10_001):
        loss = 2 + 1 / step + 0.3 * np.sin(step)
        lines.append(json.dumps({"step": step, "loss": 9.0 if step == 5003 else loss, "learning_rate": 1e-4, "grad_norm": loss,
                                 "tokens_per_second": 1000 + step, "peak_memory_gb": 3.0, "epoch": step / 5000}))  # fmt: skip
    run = copy_of(trained, tmp_path / "long", metrics_jsonl="\n".join(lines) + "\n")
    script = "import sys; from hub.cli.main import main; assert not main(sys.argv[1:]) and 'torch' not in sys.modules"
    command = [sys.executable, "-c", script, "report", f"run={run}", "samples=0"]
    assert max(len(series.values) for chart in charts_of(read_record(run)) for series in chart.series) <= 1202
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    page = (run / "report.html").read_text()
    assert len(page) < 1_000_000
    assert ",9.0," in page  # the highest point of a bucket stays


def test_thinning_keeps_ends_and_extremes():
    steps, values = np.arange(5000.0), np.sin(np.arange(5000.0))
    values[3333] = 7
    few_steps, few = thinned(steps, values, 100)
    assert len(few) <= 102
    assert (few_steps[0], few_steps[-1]) == (0, 4999)
    assert few[few_steps == 3333] == 7
    assert np.all(np.diff(few_steps) > 0)


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_page_fits_narrow_and_wide_windows_and_zooms(trained, hub, tmp_path):
    assert hub("report", f"run={trained}", f"out={tmp_path}/r.html").code == 0
    browser = Browser(tmp_path / "profile")
    try:
        backs = []
        for width, dark in ((400, False), (1400, True)):
            browser.open(tmp_path / "r.html", width, dark)
            assert browser.value("document.documentElement.scrollWidth") <= width
            backs.append(browser.value("getComputedStyle(document.body).backgroundColor"))
            assert browser.requests == [(tmp_path / "r.html").as_uri()]
        assert backs[0] != backs[1]
        plots = "[...document.querySelectorAll('.plot')].map((plot) => plot.getAttribute('viewBox'))"
        whole = browser.value(plots)
        assert set(whole) == {"0 0 1000 1000"}
        x, y, width = browser.value(
            "(() => { const p = document.querySelector('.chart'); p.scrollIntoView(); const b = p.getBoundingClientRect();"
            "return [b.left, b.top + b.height / 2, b.width]; })()"
        )
        browser.mouse("mouseMoved", x + width / 2, y)
        assert browser.value("document.querySelector('.values').textContent").startswith("step 3: training loss ")
        browser.mouse("mousePressed", x + 0.4 * width, y, button="left", clickCount=1)
        browser.mouse("mouseMoved", x + 0.7 * width, y, button="left")
        browser.mouse("mouseReleased", x + 0.7 * width, y, button="left", clickCount=1)
        boxes = [[*map(float, box.split())] for box in browser.value(plots)]
        assert all(200 < across < 500 and high < 1000 for _, _, across, high in boxes[:1])
        assert all(across != 1000 for _, _, across, _ in boxes)  # all charts show the same steps
        for count in (1, 2):
            browser.mouse("mousePressed", x + width / 2, y, button="left", clickCount=count)
            browser.mouse("mouseReleased", x + width / 2, y, button="left", clickCount=count)
        assert browser.value(plots) == whole
        browser.value("document.querySelector('.chart').focus()")
        browser.key("+")
        assert browser.value(plots) != whole
        browser.key("Escape")
        assert browser.value(plots) == whole
        browser.value("document.querySelectorAll('.legend-item')[0].click()")  # hides a curve; the axis fits the other
        assert browser.value("getComputedStyle(document.querySelector('.series')).display") == "none"
        assert browser.value(plots)[0] != whole[0]
        assert not browser.complaints
    finally:
        browser.close()
