import json
import subprocess
import sys

import pytest

from hub.config.data import DataConfig, DataSource
from hub.data.check import Checked, check_rows
from hub.errors import DataError

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def check(path, format="auto", limit=20_000, **options):
    return check_rows(DataSource(path=str(path), format=format), DataConfig(**options), limit)


def test_check_rows_counts_up_to_its_limit_and_stops_at_the_first_bad_row(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text((json.dumps(ROW) + "\n") * 5)
    assert check(file) == Checked(5, True)
    assert check(file, "messages", limit=5) == Checked(5, True)
    assert check(file, "messages", limit=3) == Checked(3, False)
    with file.open("a") as stream:
        stream.write('{"messages": []}\n')
    with pytest.raises(DataError, match=r"chats\.jsonl:6"):
        check(file)
    with pytest.raises(DataError, match="alpaca"):
        check(file, "alpaca")


def test_check_rows_imports_nothing_heavy_and_leaves_parquet_and_hub_ids_uncounted(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW))
    (tmp_path / "b.parquet").write_bytes(b"not looked at")
    code = (
        "import sys\nfrom hub.data.check import check_rows\nfrom hub.config.data import DataConfig, DataSource\n"
        f"for path in ({str(tmp_path / 'a.jsonl')!r}, {str(tmp_path / 'b.parquet')!r}, 'some-org/chats'):\n"
        "    print(*check_rows(DataSource(path=path), DataConfig()), end=' ')\n"
        "print()\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'numpy', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["1 True None False None False ", "[]"]


def test_bad_rows_can_be_passed_over_but_not_all_of_them(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text(f"{{oops\n{json.dumps(ROW)}\n[]\n")
    assert check(file, on_bad_row="skip") == Checked(1, True)
    file.write_text("{oops\n")
    with pytest.raises(DataError, match="none of its rows can be used"):
        check(file, on_bad_row="skip")


def test_a_mapped_column_that_no_row_has_is_refused(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(ROW | {"functions": []}) + "\n")
    source = DataSource(path=str(file), columns={"tools": "functions", "reasoning": "thougts"})
    with pytest.raises(DataError, match=r"data\.columns\.reasoning=thougts: no row has a field thougts\. Take it out, or name"):
        check_rows(source, DataConfig(path=str(file)))
    assert check_rows(source, DataConfig(path="another.jsonl")) == Checked(1, True)
