"""Models, data, partitions and metrics: the devices train and the server evaluates exactly the same model.

Start at `tasks.models` (model and adapter), `tasks.data` (`load_task`), `tasks.partition` and `tasks.batching`.
This file imports nothing, so that tools which only need settings or a partition start without torch.
"""
