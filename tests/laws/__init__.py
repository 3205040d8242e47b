"""The mathematics holds, whatever the weights."""
