"""The commands of `fedlodrop`, one file per group; `fedlodrop.cli` lists them."""
