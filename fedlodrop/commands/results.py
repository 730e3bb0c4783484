"""Looking at results: report, explain, figures, predict, chat, export."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, echo

from conf.compose import ConfigError, compose_config, join_overrides, read_config
from conf.convert import bound_constants
from fedlodrop.commands.shared import RunFolder, out, say, working
from fedlodrop.console.printing import make_table, printable_lines
from fedlodrop.runs import absolute_paths, run_folder
from server_app.folders import writable, writable_file


def report(
    folders: Annotated[list[Path], Argument(help="Folders of one or several runs, or of a sweep")],
    out: Annotated[Path | None, Option(help="Where to write it; default: report.html of the first run")] = None,
    pdf: Annotated[bool, Option("--pdf", help="Print it beside that as PDF, with an installed browser")] = False,
    png: Annotated[bool, Option("--png", help="Draw its top as PNG, with an installed browser")] = False,
) -> None:
    """Draw report.html of a run, or of several runs side by side."""
    target = writable_file(out or folders[0] / "report.html", "--out")
    with working("drawing the report"):
        from fedlodrop.report.browser import find_browser, print_page
        from fedlodrop.report.page import write_report
        from fedlodrop.study.seeds import runs_in

        if pdf or png:
            find_browser()
        write_report(runs_in(folders), target)
    say(f"report: {target.resolve()}")
    for suffix in [".pdf"] * pdf + [".png"] * png:
        with working(f"printing {suffix[1:].upper()}"):
            print_page(target, printed := target.with_suffix(suffix))
        say(f"report: {printed.resolve()}")


def watch(
    folder: Annotated[Path, Argument(help="Folder of a run, also one that goes on")],
    port: Annotated[int, Option(help="Port on this machine; 0: a free one", min=0, max=65535)] = 0,
) -> None:
    """Serve the report of a run to a browser on this machine; the page follows the run. Read-only; Ctrl-C ends it."""
    if not folder.is_dir():
        raise ConfigError(f"watch: expected the folder of a run, found none at {folder}")
    with working("loading libraries"):
        from fedlodrop.report import live

    live.watch(folder.resolve(), port, say)


def explain(
    words: Annotated[list[str] | None, Argument(help="Folder of a run; with --example overrides instead")] = None,
    server_round: Annotated[int, Option("--round", help="Round, from 1")] = 1,
    device: Annotated[str, Option(help="The device, by its name or its index from 0")] = "device-0",
    example: Annotated[int | None, Option(help="Show a training example, from 0: which tokens are learnt")] = None,
) -> None:
    """Say why a device got its dropout rate, bandwidth and power in a round, or which tokens of an example are learnt.

    `fedlodrop explain RUN --round 3 --device 7`; `fedlodrop explain --example 3 task=calls model=smollm2`.
    """
    words = words or []
    source = run_folder(words[0]) if len(words) == 1 and "=" not in words[0] else None
    if example is not None:
        _explain_example(example, source, words)
        return
    if source is None:
        raise ConfigError(f"explain: expected the folder of one run, found {' '.join(words) or 'none'}")
    with working(f"building round {server_round} of {source} again: loading its data and model files"):
        from fedlodrop.console import explain as explanation

        found = explanation.explain(source, server_round, device)
    explanation.print_explanation(found, out)


def _explain_example(index: int, run: Path | None, overrides: list[str]) -> None:
    config = read_config(run / "config.yaml") if run else compose_config(join_overrides(absolute_paths(overrides)))
    with working("loading data and tokenizer"):
        from conf.convert import model_settings
        from server_app.build import load_data
        from tasks.data.batches import explain_example
        from tasks.models.tokenizer import load_tokenizer

        tokens = explain_example(load_data(config).train, load_tokenizer(model_settings(config)), index)
    rows = [(str(k), repr(text), str(token), "learnt" * learnt) for k, (text, token, learnt) in enumerate(tokens)]
    title = f"training example {index}: {sum(learnt for *_, learnt in tokens)} of {len(rows)} tokens are learnt"
    out.print(make_table(title, ["", "token", "id", ""], [], rows))


def figures(
    folders: Annotated[list[Path] | None, Argument(help="Folders of runs to compare")] = None,
    out_folder: Annotated[Path, Option("--out", help="Where to write PNG and CSV files")] = Path("figures"),
    every: Annotated[int, Option(min=1, help="Draw only every n-th point of the sweeps")] = 1,
) -> None:
    """Draw the bound, all schemes against every resource, solve times, and runs side by side; PNG and CSV."""
    runs = [run_folder(folder) for folder in folders or []]
    writable(out_folder, "--out")
    with working("loading libraries"):
        from fedlodrop.study.figures import write_figures
        from optimizer.problem import BoundConstants

    config = read_config(runs[0] / "config.yaml") if runs else compose_config("")
    for picture in write_figures(out_folder, BoundConstants(**bound_constants(config)), runs, say=say, every=every):
        say(f"{picture}")


def predict(
    folder: RunFolder,
    texts: Annotated[list[str] | None, Argument(help="Texts; without any, one per line of standard input")] = None,
    pair: Annotated[list[str] | None, Option(help="Second text of each, for tasks that compare two")] = None,
    top: Annotated[int, Option(help="How many labels to show per text", min=1)] = 3,
    file: Annotated[Path | None, Option(help="A table of texts instead: .tsv, .csv, .jsonl or .parquet")] = None,
    target: Annotated[Path | None, Option("--out", help="Where to write the table with the predictions")] = None,
) -> None:
    """Ask the trained model about texts of your own: `predict RUN "a text"`, `predict RUN --file in.tsv`."""
    if file is not None and (texts or pair):
        raise ValueError("predict: expected texts or --file, found both")
    if target is not None and file is None:
        raise ValueError("--out: expected --file with it, found none")
    asked = texts or ([] if file else [line for line in sys.stdin.read().splitlines() if line.strip()])
    if file is None and not asked:
        raise ValueError("predict: expected a text, found none")
    if pair is not None and len(pair) != len(asked):
        raise ValueError(f"--pair: expected one per text, {len(asked)}, found {len(pair)}")
    source = run_folder(folder)
    with working(f"loading the model of {folder}"):
        from fedlodrop.model import predict as prediction
        from fedlodrop.model.load import load_trained
        from server_app.results import write_atomic

        trained = load_trained(source)
    if file is None:
        for text, outputs in zip(asked, prediction.predict(trained, asked, pair), strict=True):
            say(f"{text!r}: " + ", ".join(f"{name} {value:.3f}" for name, value in outputs[:top]))
        return
    table = prediction.predict_file(trained, file)
    separator = "," if target and target.suffix == ".csv" else "\t"
    written = table.to_csv(sep=separator, index=False, float_format="%.6g", lineterminator="\n")
    if target is None:
        echo(printable_lines(written.replace("\t", "  ")), nl=False)
    else:
        write_atomic(writable_file(target, "--out"), written)
        say(f"predictions: {target.resolve()} ({len(table)} rows)")


def chat(
    folder: RunFolder,
    base: Annotated[bool, Option("--base", help="Show beside it what the model says without adapter")] = False,
    system: Annotated[str | None, Option(help="System prompt; default: that of the training")] = None,
) -> None:
    """Talk to the language model that a run has taught, several turns; /new begins anew, /quit or Ctrl-D ends."""
    with working(f"loading the model of {folder}"):
        from fedlodrop.model.load import load_trained
        from fedlodrop.model.predict import Chat, is_generated, system_prompt

        trained = load_trained(run_folder(folder))
        first, alone = system_prompt(trained) if system is None else system, is_generated(trained)
        chats = {"base": Chat(trained, first, base=True, alone=alone)} if base else {}
        chats["trained"] = Chat(trained, first, alone=alone)
    if alone:
        say("every request stands alone, as in the training")
    prompt = "> " if sys.stdin.isatty() else ""
    with suppress(EOFError, KeyboardInterrupt):
        while (text := input(prompt).strip()) not in ("/quit", "/exit"):
            for name, one in chats.items() if text else ():
                if text == "/new":
                    one.turns.clear()
                    continue
                out.print(f"{name}: " if base else "", style="dim", end="")
                one.ask(text, lambda piece: out.print(piece, end="", soft_wrap=True))
                out.print()


def export(
    folder: RunFolder,
    to: Annotated[str, Option("--to", help="peft | merged | gguf")] = "peft",
    out: Annotated[Path | None, Option(help="A new folder; default: export-<format> in the run's folder")] = None,
    push: Annotated[str | None, Option(help="USER/NAME: upload it to the Hugging Face hub as well")] = None,
    private: Annotated[bool, Option("--private", help="With --push: nobody else may see it")] = False,
) -> None:
    """Write the trained model for other tools: a PEFT adapter, merged weights, or GGUF files for llama.cpp."""
    source = run_folder(folder)
    target = (out or source / f"export-{to}").resolve()
    writable(target.parent, "--out")
    with working(f"loading the model of {folder}"):
        from fedlodrop.model import export

        note = export.export(source, to, target)
    say(f"exported: {target}")
    if note:
        say(note)
    if push:
        with working(f"uploading to {push}"):
            address = export.push(target, source, push, private=private)
        say(f"pushed: {address}")
