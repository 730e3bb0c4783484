"""Studies: many runs planned in one YAML file, run side by side, and read as tables, figures and a page.

`plan` reads the file, `jobs` runs what it asks for, `tables` collects the runs, `views` and `statistics` compare
methods, `figures` and `page` show them.
"""
