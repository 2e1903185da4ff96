"""The report and its pictures, from a made-up run directory: self-contained, honest axes, gaps named."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from frontier_tune.contracts import BadInput
from frontier_tune.reporting import episodes, plots, report


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def page(run: Path) -> str:
    return report.write(run).read_text()


class References(HTMLParser):
    """Everything by which a page could reach out, and whether its tags are balanced."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.stack: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"<{tag}>"] if tag in ("script", "link", "iframe", "img", "object") else []
        self.found += [
            str(v)
            for k, v in attrs
            if k in ("src", "href", "xlink:href", "srcset", "data", "action") and not str(v).startswith("#")
        ]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing"


def test_it_is_one_file_that_reaches_nowhere(finished_page: str) -> None:
    text = finished_page
    parser = References()
    parser.feed(text)
    assert parser.found == [] and parser.stack == []
    assert "default-src 'none'" in text and "@import" not in text
    assert all(u == "#" or u.startswith("#") for u in re.findall(r"url\(([^)]*)", text))
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)), "the figures' ids don't clash"


def test_headline_tables_and_examples(finished: Path, finished_page: str) -> None:
    e = json.loads((finished / "evaluation.json").read_text())
    text = finished_page
    for share in (
        e["base"]["success"],
        e["tuned"]["success"],
        e["general_before"],
        e["general_after"],
        e["tuned"]["success_sampled"],
    ):
        assert f"{100 * share:.1f} %" in text
    assert f"{e['paired']['gained']} gained" in text and "McNemar" in text
    for kind, share in e["tuned"]["by_kind"].items():
        assert kind in text and f"{100 * share['success']:.1f} %" in text
    assert "<td>best blind script</td>" in text and "11.0 %" in text
    assert (
        text.count("solved only when tuned") == 4
        and text.count("solved only by the base") == 1
        and text.count("failed by both") == 1
    )
    assert episodes.RULE.split(":")[0] in text
    assert "mlp.experts.gate_up_proj" in text and "1,280 parameters in 2 tensors" in text
    assert "clip_high: 0.28" in text, "the resolved recipe is there"
    assert "record.json: not there" in text and "adapter/adapter_config.json: not there" not in text


def test_what_an_episode_says_stays_text(finished_page: str) -> None:
    text = finished_page
    assert "&lt;b&gt;for account" in text and "<b>for account" not in text


def test_a_record_is_shown_with_its_digest(run: Path) -> None:
    dependency = {"name": "base", "uri": "nano", "digest": {"sha256": "ab" * 32}, "annotations": {"license": "Apache-2.0"}}
    code = {"name": "code", "digest": {"gitCommit": "cd" * 20}, "annotations": {"dirty": True}}
    (run / "record.json").write_text(json.dumps({"predicate": {"buildDefinition": {"resolvedDependencies": [dependency, code]}}}))
    text = page(run)
    assert "ab" * 8 in text and "nano, Apache-2.0" in text and "uncommitted changes" in text


def spoil(path: Path, how: str) -> None:
    if how == "gone":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return
    for file in path.rglob("*") if path.is_dir() else [path]:
        file.write_bytes(b"[]\n[ \xff broken")


PARTS = ["metrics.jsonl", "evaluation.json", "recipe.yaml", "adapter", "evaluation"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["gone", "broken"])
def test_each_missing_part_is_named(run: Path, part: str, how: str) -> None:
    spoil(run / part, how)
    missing = report.gather(run).missing
    told = [m for m in missing if m.startswith((f"{part}:", f"{part}/"))]
    assert told and all(("not there" in m) == (how == "gone") for m in told)
    assert len(missing) == len(told) + 1, "beside the record, which is never there, nothing else"


@pytest.mark.parametrize("how", ["gone", "broken"])
def test_a_report_of_what_is_left_is_still_written(run: Path, how: str) -> None:
    for part in PARTS[1:]:
        spoil(run / part, how)
    text = html.unescape(page(run))
    assert all(m in text for m in report.gather(run).missing)
    assert "not evaluated" in text and "What this does not show" in text and "Learning curve" in text


def test_an_evaluation_of_the_base_alone(run: Path) -> None:
    e = json.loads((run / "evaluation.json").read_text())
    e |= {"tuned": None, "paired": None, "general_after": None, "canaries": {}, "train": None}
    e["general"] |= {"after": None, "paired": None}
    (run / "evaluation.json").write_text(json.dumps(e))
    text = page(run)
    assert "No tuned model was evaluated" in text and "forgot general skills was not measured" in text and "Not run." in text


def test_limits_tell_of_ungraded_episodes(run: Path) -> None:
    e = json.loads((run / "evaluation.json").read_text())
    e |= {"canaries_n": {"no_op": 1}, "canary_failures": {"no_op: environment:step-raised": 319}}
    e["tuned"] |= {"n": 310, "n_submitted": 320, "success_of_submitted": 0.875, "success_sampled": None}
    (run / "evaluation.json").write_text(json.dumps(e))
    text = page(run)
    assert "10 of 320 held-out episodes of the tuned were not graded" in text and "87.5 %" in text
    assert "Success when sampling at temperature 1 was not measured" in text
    assert "Not graded, and in no share: 319 of no_op: environment:step-raised." in text


def test_it_can_be_rebuilt(run: Path, finished_page: str) -> None:
    assert page(run) == finished_page
    assert not list(run.glob("*.tmp"))


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a run directory"):
        report.write(tmp_path)


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def rows(run: Path) -> list[dict[str, Any]]:
    return report.gather(run).rows


def test_the_curve_has_an_honest_axis_and_true_points(run: Path) -> None:
    data = rows(run)
    e = json.loads((run / "evaluation.json").read_text())
    fig = plots.learning_curve(data, e)
    ax, side = fig.axes
    assert ax.get_ylim() == (0.0, 1.0) == side.get_ylim()
    dots = next(line for line in ax.lines if line.get_marker() == ".")
    assert list(dots.get_ydata()) == [r["success"] for r in data]
    assert {line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"} == {
        e["base"]["success"],
        e["tuned"]["success"],
    }
    plots.save_png(fig, run / "learning-curve.png")
    assert png_size(run / "learning-curve.png")[0] > 1000


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_short_runs_have_curves_too(run: Path, tmp_path: Path, count: int) -> None:
    few = [{"step": r["step"], "success": r["success"]} for r in rows(run)[:count]]
    plots.save_png(plots.learning_curve(few, None), tmp_path / "a.png")
    plots.save_png(plots.diagnostics(few), tmp_path / "b.png")
    assert png_size(tmp_path / "a.png") and png_size(tmp_path / "b.png")


def test_rewards_beyond_one_never_bend_the_axis_of_shares(run: Path) -> None:
    data = [{**r, "reward": 3.0 * r["reward"]} for r in rows(run)]
    ax = plots.learning_curve(data, None).axes[0]
    assert ax.get_ylim() == (0.0, 1.0)
    assert [t.get_text() for t in ax.texts] == ["training success"]


def test_small_multiples_start_at_zero_and_name_what_is_missing(run: Path) -> None:
    data = [{k: v for k, v in r.items() if k != "kl_base"} for r in rows(run)]
    axes = plots.diagnostics(data).axes
    assert all(ax.get_ylim()[0] == 0 for ax in axes if len(ax.get_yticks()))
    assert [t.get_text() for ax in axes for t in ax.texts if t.get_text() == "not recorded"] == ["not recorded"]
    top = max(sum(r["phases"].values()) for r in data)
    tallest = max(patch.get_y() + patch.get_height() for patch in axes[6].patches)
    assert tallest == pytest.approx(top)


def test_smoothing_keeps_the_mean_of_a_constant_and_invents_nothing() -> None:
    assert plots.smooth([0.5] * 9, 5) == [0.5] * 9
    assert plots.smooth([0.0, 1.0, 0.0], 1) == [0.0, 1.0, 0.0]
    values = [0.1, 0.9, 0.4, 0.6]
    assert all(min(values) <= v <= max(values) for v in plots.smooth(values, 3))


def test_colours_of_a_page_come_from_its_style_sheet(finished_page: str) -> None:
    text = finished_page
    svg = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.S))
    assert "var(--blue)" in svg and "var(--ink)" in svg
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) <= {"#000000", "#ffffff"}


def test_examples_follow_the_rule() -> None:
    def episode(task: str, kind: str, success: bool) -> dict[str, Any]:
        return {"task": task, "kind": kind, "success": success, "reward": 0.0, "messages": [{"role": "user", "content": "go"}]}

    base = [
        episode(t, k, s)
        for t, k, s in (("d", "x", False), ("b", "x", False), ("c", "y", True), ("a", "y", False), ("e", "z", True))
    ]
    tuned = [episode(t, k, s) for t, k, s in (("b", "x", True), ("d", "x", True), ("c", "y", False), ("a", "y", False))]
    chosen = episodes.choose(base, tuned)
    assert [(x.task, x.why) for x in chosen] == [
        ("b", "solved only when tuned"),
        ("c", "solved only by the base"),
        ("a", "failed by both"),
    ]
    assert chosen[0].opening == [{"role": "user", "content": "go"}] and chosen[0].base_messages == []


def test_the_recipe_in_a_report_is_the_runs_own(run: Path) -> None:
    data = yaml.safe_load((run / "recipe.yaml").read_text())
    assert report.gather(run).recipe == data


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.997, "99.7 %"), (1.0, "100 %"), (1, "100 %"), (0.004, "0.4 %"), (0, "0 %"), (0.42, "42 %"), (0.9999, "99.99 %")],
)
def test_only_all_is_a_hundred_percent_and_only_none_is_nought(share: float, shown: str) -> None:
    assert report.percent(share, 0) == shown
    assert report.interval([share, share]).endswith(shown)
