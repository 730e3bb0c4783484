"""Models, data, partitions and metrics: the devices train and the server evaluates exactly the same model.

Start at `tasks.models.build` (model and adapter), `tasks.data.load` (`load_task`), `tasks.data.partition` and
`tasks.data.batches`. This file imports nothing, so that tools which only need settings or a partition start without
torch.
"""
