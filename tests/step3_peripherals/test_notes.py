import doctest
from pathlib import Path

NOTES = Path(__file__).resolve().parents[2] / "step3_peripherals" / "notes.md"


def test_the_examples_of_the_notes_are_what_the_code_says():
    tried = doctest.testfile(str(NOTES), module_relative=False, encoding="utf-8")
    assert tried.attempted > 20 and not tried.failed
