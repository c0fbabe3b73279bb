"""Two frozen towers: an image model and a text model that others trained, and what joins them."""
