import pytest

from hub.errors import ConfigError
from hub.tasks.evaluate.metrics import load_metrics, problems


def test_metrics_are_those_of_their_definitions():
    names = ["exact_match", "exact_match_normalized", "contains", "f1", "chrf"]
    metrics = {one.name: one for one in load_metrics(names)}

    def values(answer, reference):
        return [round(metrics[name](answer, reference, {}), 4) for name in names]

    assert values(" The cat. ", "The cat.") == [1, 1, 1, 1, 1]
    assert values("a CAT", "The cat!")[:4] == [0, 1, 0, 1]
    # SQuAD's script: the words cat sat here / cat sat, so precision 2/3, recall 1.
    assert values("the cat sat here", "cat sat")[:4] == [0, 0, 1, 0.8]
    assert values("", "cat") == [0, 0, 0, 0, 0]
    # Without spaces, thecat and thehat share 5 of 6 letters, 3 of 5 pairs, 1 of 4 triples, and nothing longer.
    assert metrics["chrf"]("the cat", "the hat", {}) == pytest.approx((5 / 6 + 3 / 5 + 1 / 4) / 6)


@pytest.mark.slow  # its library takes seconds to import
def test_rouge_l_is_of_the_longest_common_subsequence():
    (rouge,) = load_metrics(["rouge_l"])
    # a b c d and a c e have 2 words in common, in this order: P = 2/4, R = 2/3.
    assert rouge("a b c d", "a c e", {}) == pytest.approx(4 / 7)


def test_a_function_of_ones_own_gets_what_its_arguments_name(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def longer(answer, reference, level):\n    return (len(answer) > len(reference)) * level\n"
        "def broken(answer):\n    return answer / 2\ndef text(answer):\n    return 'yes'\n"
        "def numpy(answer):\n    import numpy\n    return numpy.float32(0.5)\n",
        encoding="utf-8",
    )
    (longer,) = load_metrics([f"{file}:longer"])
    assert longer.fields == ["level"]
    assert longer("abc", "a", {"level": 3}) == 3.0
    (numpy,) = load_metrics([f"{file}:numpy"])
    assert numpy("abc", "a", {}) == 0.5
    for name, line in {
        "broken": "broken: its function failed: TypeError",
        "text": "must return a finite number, but returned 'yes'",
    }.items():
        (metric,) = load_metrics([f"{file}:{name}"])
        with pytest.raises(ConfigError, match=line):
            metric("abc", "a", {})
    with pytest.raises(ConfigError, match=r"has no function shorter. It has: longer, broken, text, numpy"):
        load_metrics([f"{file}:shorter"])


def test_names_are_checked_with_the_nearest_ones():
    (line,) = problems(["exact_macth", "f1"])
    assert "Did you mean exact_match" in line
    (line,) = problems(["none.py:f"])
    assert "there is no file none.py" in line
