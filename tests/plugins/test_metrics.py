"""A plugin's metric: what it may be, and that `evaluate` computes it."""

import pytest

from hub.plugins import registry as plugins
from hub.tasks.evaluate import metrics

PLUGIN = """
from hub import Metric, hookimpl

def count(answer, row):
    return len(answer.split()) - row["wanted"]

@hookimpl
def hub_metrics():
    return [Metric(**VALUES)]
"""


def load(plugin_folder, values):
    folder = plugin_folder()
    folder.add("words", PLUGIN.replace("**VALUES", values))
    return plugins.load(folder.entry_points)


def test_a_metric_of_a_plugin_is_computed(plugin_folder, monkeypatch):
    found = load(plugin_folder, "name='num_words', function=count, better='lower', unit='words'")
    assert found.warnings == []
    monkeypatch.setattr(metrics, "registry", lambda: found)
    assert metrics.problems(["num_words"]) == []
    (metric,) = metrics.load_metrics(["num_words"])
    assert (metric.better, metric.unit, metric.fields) == ("lower", "words", [])
    assert metric("one two three", "", {"wanted": 1}) == 2.0


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ("name='Num words', function=count", "metric 'Num words': this name is not allowed."),
        ("name='f1', function=count", "metric f1: there is one of this name already"),
        ("name='words', function='count'", "metric words: function='count' is not allowed. Write it as 'package.module:fun"),
        ("name='words', function=count, better='more'", "metric words: better='more' is not allowed. Allowed: higher, lower"),
        ("name='words', function=count, best=1", "hub.Metric has no field best. Allowed: name, function, better, unit, summ"),
    ],
)
def test_a_metric_that_can_not_be_used_is_refused_with_what_to_write(plugin_folder, values, line):
    found = load(plugin_folder, values)
    assert line in found.warnings[0]
    assert not found.metrics
