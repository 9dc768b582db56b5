"""What is wrong with the data, with a value, with the net."""
