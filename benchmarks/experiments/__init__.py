"""What the commands run: configurations in, folders out."""
