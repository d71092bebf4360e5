"""Who decides: measures of what moves a model's decisions, from cached encodings. Import each from its own module."""
