"""A model's weights: the table that says what they are, and the values that hold them."""
