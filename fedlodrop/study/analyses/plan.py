"""The plan of a study that is computed and not run: one YAML file with the key ``analysis``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from conf.compose import ConfigError
from fedlodrop.study.analyses.convergence import study_convergence
from fedlodrop.study.analyses.learning_curve import study_learning_curve
from fedlodrop.study.analyses.linear_model import study_linear_model
from fedlodrop.study.plan import check_keys, read_file, words
from server_app.results import write_atomic

ANALYSES: dict[str, Callable[[dict[str, Any], Sequence[int], Path], pd.DataFrame]] = {
    "convergence": study_convergence,
    "learning_curve": study_learning_curve,
    "linear_model": study_linear_model,
}
_KEYS = {"analysis", "title", "question", "parameters", "seeds", "targets", "notes", "quick"}


@dataclass(frozen=True)
class Analysis:
    """A checked file of an analysis; ``parameters`` are those of its function."""

    name: str
    title: str
    question: str
    analysis: str
    parameters: dict[str, Any]
    seeds: tuple[int, ...]
    targets: tuple[Mapping[str, Any], ...] = ()
    notes: str = ""

    def run(self, folder: Path) -> None:
        """Compute the table (a row per setting and seed) and the figure anew, and write them into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        table = ANALYSES[self.analysis](self.parameters, self.seeds, folder)
        write_atomic(folder / "table.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read_analysis(path: Path, *, quick: bool = False) -> Analysis | None:
    """Read a study file if it plans an analysis; None for a study of runs. ``quick`` takes the file's tiny sizes.

    Raises ConfigError if the analysis or a key of the file is unknown, or one is missing.
    """
    path, content = read_file(path)
    if "analysis" not in content:
        return None
    check_keys(content, _KEYS, ("title", "parameters", "seeds"), f"study {path}")
    if content["analysis"] not in ANALYSES:
        raise ConfigError(f"study {path}: analysis must be one of {', '.join(ANALYSES)}, found {content['analysis']!r}")
    small = content.get("quick") or {} if quick else {}
    return Analysis(
        **words(path, content),
        analysis=content["analysis"],
        parameters={**content["parameters"], **small.get("parameters", {})},
        seeds=tuple(small.get("seeds") or content["seeds"]),
    )
