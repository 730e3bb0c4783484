"""Examples of every task: loaded, divided among devices, cut into batches.

The pattern for a new task is `tasks.data.mnist`, one file with its examples and its reader; its loader is registered in
`tasks.data.load` (`_LOADERS`, `TASKS`). Sets of labelled texts need no code: ``task=tsv``.
"""
