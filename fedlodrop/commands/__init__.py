"""The commands of `fedlodrop`: on runs, on studies (many runs), on results; `fedlodrop.cli` lists them."""
