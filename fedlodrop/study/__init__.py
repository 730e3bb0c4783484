"""Many runs: a sweep, or a study planned in one YAML file, run side by side and read as tables, figures and a page."""
