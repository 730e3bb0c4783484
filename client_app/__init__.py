"""The device: restores a sub-adapter, trains it, sends the surviving rows and columns back.

A device never imports `strategy`, `optimizer` or `wireless`, where the server decides; import-linter holds that.
"""
