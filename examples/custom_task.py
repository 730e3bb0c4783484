"""A task of your own: is a sentence about food or about travel? Train on it, then ask the model.

Run: python examples/custom_task.py
Or:  fedlodrop run task.class=examples.custom_task:food_or_travel
"""

import sys
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
    labels = rng.integers(len(WORDS), size=size)
    verbs_and_things = list(WORDS.values())
    spoken = [[WHO, *verbs_and_things[label], WHEN] for label in labels]
    return TextExamples(tuple(" ".join(str(rng.choice(words)) for words in parts) for parts in spoken), labels)


def food_or_travel(settings: TaskSettings) -> TaskData:
    """Return training and test sentences; the validation set is held out of the training by the caller.

    Server and devices call this in processes of their own: equal settings must give equal data.
    """
    rng = np.random.default_rng([0x657861, settings.seed])
    train, test = sentences(settings.train_limit or 240, rng), sentences(80, rng)
    return TaskData("food or travel", train, train.subset([]), test, "classification", tuple(WORDS), ("accuracy",))


def main() -> int:
    """Run a federation of four devices on it, and ask for two predictions."""
    task = "task.class=examples.custom_task:food_or_travel"
    short = ("run.num_rounds=4", "training.local_steps=8", "network.num_devices=4")
    with tempfile.TemporaryDirectory() as folder:
        done = fedlodrop.run(task, "model=tiny", "run.engine=local", *short, f"run.dir='{folder}/run'")
        texts = ["we cook soup at noon", "they catch the ferry tomorrow"]
        for text, answer in zip(texts, done.predict(texts), strict=True):
            print(f"{text}: {answer[0][0]} ({answer[0][1]:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
