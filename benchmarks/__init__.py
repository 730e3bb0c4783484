"""What fedlodrop is measured against, and the measurements; not part of the product's packages."""
