"""``fmwiss extend``: a trained model, photographs and their tags in, a grown model out."""
