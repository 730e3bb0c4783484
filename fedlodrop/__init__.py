"""The product as people use it: the `fedlodrop` command and, from Python, `import fedlodrop`."""
