"""A plugin's data format with several samples per row: which roles are allowed."""

import pytest

from hub.plugins import registry as plugins

PLUGIN = """
from hub import DataFormat, hookimpl

@hookimpl
def hub_data_formats():
    return [DataFormat(name="pair", fields=("chosen", "rejected"), convert=dict, roles=ROLES)]
"""


def load(plugin_folder, roles):
    folder = plugin_folder()
    folder.add("pair", PLUGIN.replace("ROLES", roles))
    return plugins.load(folder.entry_points)


def test_a_format_may_have_roles_or_none(plugin_folder):
    found = load(plugin_folder, "('chosen', 'rejected_2')")
    assert (found.warnings, found.data_formats["pair"].roles) == ([], ("chosen", "rejected_2"))


def test_a_format_without_roles_is_one_sample_a_row(plugin_folder):
    found = load(plugin_folder, "()")
    assert (found.warnings, found.data_formats["pair"].roles) == ([], ())


@pytest.mark.parametrize(
    "roles",
    ["'chosen'", "['chosen', 'rejected']", "('chosen',)", "('a', 'a')", "('a', 1)", "('a', 'b b')", "('a', '')", "None"],
)
def test_roles_that_can_not_be_told_apart_are_refused_with_what_to_write(plugin_folder, roles):
    found = load(plugin_folder, roles)
    (line,) = found.warnings
    assert f"data format pair: roles={eval(roles)!r} is not allowed. Write two or more different names as a tuple" in line
    assert "pair" not in found.data_formats
