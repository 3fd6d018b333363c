"""Several attacks in a row, each on the images that still stand."""
