"""From two memory images to a verdict."""
