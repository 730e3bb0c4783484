"""What a person should know about the data before believing a score: cut texts, a test set that was trained on."""

from collections.abc import Mapping

from tasks.data.batches import Encoded, Tokenised
from tasks.data.examples import Examples, PromptExamples

_NATURAL_SHARE = 0.05  # so many test texts recur in the training data of well-kept collections, too (CoLA: 1.5 %)


def data_notes(train: Examples, test: Examples, parts: Mapping[str, Encoded], max_tokens: int) -> list[str]:
    """Return one line for everything that is wrong with the data and was not refused.

    ``parts`` are the tokenised examples by the name of their set, cut to ``max_tokens``.
    """
    notes = [note for name, part in parts.items() if (note := _cuts(name, part, max_tokens))]
    known = set(train.keys())
    again = sum(key in known for key in test.keys())
    if again > _NATURAL_SHARE * len(test):
        mend = "give another task.validation_file, or none to hold a fifth of the training file out"
        notes.append(f"{again} of {len(test)} test examples are also training examples, the score is too good; {mend}")
    if len(test) > 1 and not isinstance(test, PromptExamples) and (test.labels == test.labels[0]).all():
        notes.append(f"all {len(test)} test examples have the same label: is the file one without labels?")
    return notes


def _cuts(name: str, part: Encoded, max_tokens: int) -> str:
    if not isinstance(part, Tokenised) or part.cut is None:
        return ""
    some, lost = part.cut, " and lose their end"
    if part.response_cut is not None:
        some = part.cut | part.response_cut
        prompts, ends = part.cut.sum(), part.response_cut.sum()
        lost = f": {prompts} lose a part of their prompt, {ends} the end of their answer (never a match then)"
    told = f"are longer than model.max_tokens={max_tokens}{lost}; raise it if the model can"
    return f"of {len(part)} {name} examples {some.sum()} {told}" if some.any() else ""
