"""Which backend of an algorithm runs, and why none does."""

import pytest
from plugin_sources import algorithm, backends, options_of

from hub.errors import PluginError
from hub.plugins.registry import load


def test_auto_takes_the_available_backend_of_the_highest_priority_and_says_why(plugin_folder):
    folder = plugin_folder()
    folder.add("dig", algorithm("dig"))
    folder.add("slow", backends("name='slow', priority=-1", "name='usual', needs=('json',)"))
    folder.add("fast", backends("name='fast', priority=5, needs=('no_such_module',), install='pip install spade'"))
    found = load(folder.entry_points)
    backend, why = found.backend(options_of(found))
    assert backend.name == "usual"
    assert why == "fast: not installed: no_such_module. Type: pip install spade"
    assert found.backend(options_of(found, backend="slow")) == (found.backends["dig"]["slow"], "asked for")

    with pytest.raises(
        PluginError, match=r"algo.backend=fast can't run here: not installed: no_such_module. Type: pip install spade"
    ):
        found.backend(options_of(found, backend="fast"))
    assert found.backend(options_of(found, backend="fast"), check_needs=False)[0].name == "fast"

    with pytest.raises(
        PluginError,
        match=r"algo.backend=fats: dig has no such backend. Allowed: auto, fast, slow, usual.* Did you mean fast",
    ):
        found.backend(options_of(found, backend="fats"))


def test_without_a_backend_that_can_run_every_obstacle_is_named(plugin_folder):
    folder = plugin_folder()
    folder.add("dig", algorithm("dig"))
    found = load(folder.entry_points)
    with pytest.raises(PluginError, match=r"dig has no backend that can run here. None is installed"):
        found.backend(options_of(found))

    folder.add(
        "two",
        backends(
            "name='one', needs=('no_such_module',)",
            "name='two', available=lambda: 'needs a GPU'",
            "name='three', available=lambda: 1 / 0",
        ),
    )
    found = load(folder.entry_points)
    with pytest.raises(PluginError) as caught:
        found.backend(options_of(found))
    assert "one: not installed: no_such_module. Type: pip install no_such_module" in str(caught.value)
    assert "two: needs a GPU" in str(caught.value)
    assert "three: its own check failed: ZeroDivisionError" in str(caught.value)


def test_a_backend_left_out_is_named_when_it_is_asked_for(plugin_folder):
    folder = plugin_folder()
    folder.add("dig", algorithm("dig"))
    folder.add("fast", "import no_such_module_anywhere")
    found = load(folder.entry_points)
    with pytest.raises(PluginError, match=r"dig has no such backend. Allowed: auto. Plugin fast \(dist-fast 1.0\) is left out"):
        found.backend(options_of(found, backend="fast"))
