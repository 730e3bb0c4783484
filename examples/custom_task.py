"""A task of your own: is a sentence about food or about travel? Train on it, then ask the model.

Run: python examples/custom_task.py
Or:  fedlodrop run task.class=examples.custom_task:food_or_travel
"""

import tempfile

import numpy as np

import fedlodrop
from tasks.data.examples import TextExamples
from tasks.data.load import TaskData, TaskSettings

WORDS = {
    "food": (["cook", "bake", "order", "taste"], ["soup", "bread", "noodles", "salad", "a pie"]),
    "travel": (["book", "catch", "miss", "find"], ["the train", "a flight", "the ferry", "a taxi", "the bus"]),
}
WHO = ["I", "we", "they", "my friends", "the neighbours"]
WHEN = ["today", "tomorrow", "at noon", "before work", "on Sunday", "next week"]


def sentences(size: int, rng: np.random.Generator) -> TextExamples:
    """Return sentences with their label."""
    labels, words = rng.integers(len(WORDS), size=size), list(WORDS.values())
    parts = [[WHO, *words[label], WHEN] for label in labels]
    return TextExamples(tuple(" ".join(str(rng.choice(some)) for some in sentence) for sentence in parts), labels)


def food_or_travel(settings: TaskSettings) -> TaskData:
    """Return training and test sentences; equal settings must give equal data in every process.

    The validation set is held out of the training by the caller.
    """
    rng = np.random.default_rng([0x657861, settings.seed])
    train, test = sentences(settings.train_limit or 240, rng), sentences(80, rng)
    return TaskData("food or travel", train, train.subset([]), test, "classification", tuple(WORDS), ("accuracy",))


def main() -> None:
    """Run a federation of four devices on it, and ask for two predictions."""
    task = ("task.class=examples.custom_task:food_or_travel", "model=tiny", "run.engine=local")
    short = ("run.num_rounds=4", "training.local_steps=8", "network.num_devices=4")
    texts = ["we cook soup at noon", "they catch the ferry tomorrow"]
    with tempfile.TemporaryDirectory() as folder:
        done = fedlodrop.run(*task, *short, f"run.dir='{folder}/run'")
        for text, answer in zip(texts, done.predict(texts), strict=True):
            print(f"{text}: {answer[0][0]} ({answer[0][1]:.2f})")


if __name__ == "__main__":
    main()
