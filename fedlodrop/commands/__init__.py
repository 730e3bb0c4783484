"""The commands of `fedlodrop`, one file per group; `server_app.cli` lists them."""
