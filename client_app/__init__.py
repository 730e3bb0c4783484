"""The device: restores a sub-adapter, trains it, sends the surviving rows and columns back."""
