"""What the documentation is built with: the reference's pages from the packages themselves."""
