"""The lines that the mutation check changes are still there, and the tests that should notice."""

import pytest

from tools.mutation_check import MUTATIONS, ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_the_line_stands_once(mutation):
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1 and mutation.new != mutation.old
    assert (ROOT / mutation.tests).is_file()
