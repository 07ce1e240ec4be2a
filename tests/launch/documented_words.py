"""The words that the documents tell a user to type: each way of launching must deliver them."""

from __future__ import annotations

import re
import shlex

from tests.conftest import REPOSITORY

_SET = re.compile(r"""--set[ =]((?:'[^']*'|"[^"]*"|\\.|[^\s`'"\\])+)""")

AWKWARD = [
    "evaluation.sample_prompt=two words",
    'evaluation.sample_prompt=a "quoted" word, it\'s',
    "evaluation.sample_prompt=$HOME `id` $(id) \\ ; & | > < * ? ~ ! # {a,b} [c]",
    'data.sources={web: {path: "s3://b/w", weight: 0.9}, books: {path: data/b, weight: 0.1}}',
    "evaluation.sample_prompt=größer",
]
"""Values that a shell on the way would change."""


def sets_of(text: str) -> list[str]:
    """Every value of `--set` in a document, as a shell would hand it over, each once.

    >>> sets_of("Type `--set a.b=1`, or\\n```\\nx --set 'c.d={e: 2}' --set a.b=1\\n```")
    ['a.b=1', 'c.d={e: 2}']
    """
    words = [word for found in _SET.findall(text) for word in shlex.split(found)[:1]]
    return list(dict.fromkeys(word for word in words if "=" in word))


def documented_sets() -> list[str]:
    """Every value of `--set` that README.md, launch/ and the comments of recipes/ show.

    A test of a way to launch (pdsh, OpenMPI, Slurm) starts a rank with each of them, and with
    `AWKWARD`, and holds what arrived there against the same bytes.
    """
    found = sets_of((REPOSITORY / "README.md").read_text())  # may show none
    for kind in ("launch/*.md", "launch/*.yaml", "launch/*.sbatch", "recipes/*.yaml"):
        texts = [path.read_text() for path in sorted(REPOSITORY.glob(kind))]
        words = [word for text in texts for word in sets_of(text)]
        assert words, f"the --set of {kind} are no longer found"
        found += words
    return list(dict.fromkeys(found))
